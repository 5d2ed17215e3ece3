"""What a node keeps on its disk for a run: its key, its model, and what the model looks like."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from flwr.app import Context

from flower_edge.clients import messages
from flower_edge.clients.untold_rounds import UntoldRounds
from flower_edge.gossip.codec import ArraySpec, Layout, Vector
from flower_edge.peer import Identity, State, StateError
from flower_edge.peer.part import run_id
from flower_edge.strategies.meeting import is_simulated, simulated_root

KEPT_RUNS = 3
"""Folders of so many runs stay; older ones are removed when a new run begins."""


@dataclass(frozen=True)
class NodeFiles:
    """The files of one node in one run.

    Flower loses ``Context.state`` when a SuperNode restarts, and starts a new process for each message: what
    has to last is here.

    Attributes
    ----------
    folder : Path
        For its owner alone.
    run : str
        What the strategy calls the run.
    """

    folder: Path
    run: str

    @classmethod
    def of(cls, context: Context, run: str) -> NodeFiles:
        """Return the files of this node, in a folder that is there.

        It lies below ``gossip-folder`` of the node config, by default below ``$XDG_STATE_HOME/flower_edge``;
        that of a simulated node in the folder for temporary files, until the run is over. Its name is the
        partition's: Flower gives a SuperNode without a key of its own another id at each start.
        """
        if not run.isalnum():
            raise ValueError(f"received run {run!r:.60}, expected letters and digits")
        above = _root(context, run) / f"partition-{messages.partition(context)}"
        folder = above / run
        if not folder.exists():
            folder.mkdir(mode=0o700, parents=True)
            _remove_old(above)
        return cls(folder, run)

    @property
    def state(self) -> Path:
        """Where the session keeps the model after each round."""
        return self.folder / "state"

    @property
    def untold_rounds(self) -> UntoldRounds:
        """What sessions did and the server has not heard of."""
        return UntoldRounds(self.folder / "untold-rounds.json")

    def identity(self) -> Identity:
        """Return the node's key and certificate of this run, made when they are first asked for."""
        key, certificate = self.folder / "node.key", self.folder / "node.crt"
        if not certificate.exists():
            key.unlink(missing_ok=True)  # of a process that died between the two
            Identity.temporary().save(key, certificate)
        return Identity.load(key, certificate)

    def keep_layout(self, layout: Layout) -> None:
        """Remember the names, shapes and dtypes of the model's arrays."""
        specs = [[spec.name, list(spec.shape), spec.dtype] for spec in layout.specs]
        partial = self.folder / "layout.partial"
        partial.write_text(json.dumps(specs))
        partial.replace(self.folder / "layout.json")

    def arrays(self) -> dict[str, npt.NDArray[Any]] | None:
        """Return arrays of zeros that look like the model's, None if this node has none yet."""
        path = self.folder / "layout.json"
        if not path.exists():
            return None
        specs = (ArraySpec(name, tuple(shape), dtype) for name, shape, dtype in json.loads(path.read_text()))
        return {spec.name: np.zeros(spec.shape, spec.dtype) for spec in specs}

    def keep_start(self, start: Vector) -> None:
        """Remember the model that all nodes begin with: what memories of links begin as."""
        partial = self.folder / "start.partial"
        partial.write_bytes(start.astype("<f4").tobytes())
        partial.replace(self.folder / "start")

    def start(self, elements: int) -> Vector:
        """Return the model that all nodes began with.

        Raises
        ------
        ValueError
            If it is not on disk, or of another size.
        """
        path = self.folder / "start"
        if not path.exists() or path.stat().st_size != 4 * elements:
            raise ValueError(
                f"{str(path)!r} is not the model of {elements} elements that all nodes began with"
            )
        return np.fromfile(path, "<f4").astype(np.float32)

    def kept(self, node: int) -> State | None:
        """Return what is on disk, None if there is nothing or it is no good."""
        arrays = self.arrays()
        if arrays is None or not self.state.exists():
            return None
        try:
            return State.load(self.state, run_id(self.run), node, Layout.of(arrays).size)
        except StateError:
            return None

    def forget(self) -> None:
        """Remove the model; the key stays, since others have pinned it."""
        self.state.unlink(missing_ok=True)


def _root(context: Context, run: str) -> Path:
    given = context.node_config.get("gossip-folder")
    if given is not None:
        return Path(str(given))
    if is_simulated():
        return simulated_root(run)
    state_home = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state_home) / "flower_edge"


def _remove_old(folder: Path) -> None:
    runs = sorted(folder.iterdir(), key=lambda run: run.stat().st_mtime)
    for run in runs[:-KEPT_RUNS]:
        shutil.rmtree(run, ignore_errors=True)
