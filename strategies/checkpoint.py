"""The state of a hosted gossip on disk: one file, replaced atomically."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from flower_edge.gossip.codec import ArraySpec, Carried, Layout
from flower_edge.gossip.mixer import State
from flower_edge.strategies import archive
from flower_edge.strategies.archive import CheckpointError
from flower_edge.strategies.fleet import Fleet
from flower_edge.strategies.importance import Importance, checked_importance

VERSION = 1
MAX_COUNTS = 4
"""Whole numbers that a mixer remembers, for each node of the plan."""

History = dict[str, dict[int, dict[str, Any]]]


@dataclass
class Progress:
    """What a run has done so far, beside its models.

    Attributes
    ----------
    server_round : int
        The last whole round.
    traffic : ndarray of int64, shape (n,)
        Bytes that each node sent and received over the plan's links so far.
    energy : ndarray of float64, shape (n,)
        Wh that the plan's energy model puts on each node so far.
    bound : dict of int to int
        Flower node id → index in the plan.
    history : dict
        Metrics of every round, by the name of the field of Flower's ``Result``.
    importance : dict of str to float
        The nodes' mean importance of each tensor in the last round; empty if none is kept.
    """

    server_round: int
    traffic: npt.NDArray[np.int64]
    energy: npt.NDArray[np.float64]
    bound: dict[int, int] = field(default_factory=dict)
    history: History = field(default_factory=dict)
    importance: Importance = field(default_factory=dict)

    @classmethod
    def start(cls, n: int) -> Progress:
        """Return the progress of a run of n nodes that has done nothing yet."""
        return cls(0, np.zeros(n, np.int64), np.zeros(n))


def save(path: Path, fleet: Fleet, progress: Progress) -> None:
    """Write the models and the progress.

    After a crash at any moment `path` is either the old or the new file, whole.

    Raises
    ------
    OSError
        If the file cannot be written (a full disk, a missing folder). The previous checkpoint is untouched.
    """
    meta = {
        "version": VERSION,
        "plan": fleet.plan.digest(),
        "layout": archive.layout_meta(fleet.layout),
        "mixer": fleet.mixer_name,
        "memories": [_memory_meta(mixer.state()) for mixer in fleet.mixers],
        "round": progress.server_round,
        "traffic": progress.traffic.tolist(),
        "energy": progress.energy.tolist(),
        "bound": {str(node_id): index for node_id, index in progress.bound.items()},
        "history": progress.history,
        "importance": progress.importance,
    }
    arrays = {"models": fleet.models}
    for node, carried in enumerate(fleet.carried):
        arrays |= {_carried_name(node, name): array for name, array in carried.items()}
    for node, mixer in enumerate(fleet.mixers):
        arrays |= {_memory_name(node, name): array for name, array in mixer.state().items()}
    archive.write(path, meta, arrays, "the checkpoint")


def load(path: Path, fleet: Fleet) -> Progress:
    """Read a checkpoint into `fleet` and return the progress.

    Nothing is unpickled, and sizes are compared with the expected ones before memory is taken.

    Raises
    ------
    CheckpointError
        If the file is damaged, of another version, or of another plan or model. The fleet is then unchanged.
    """
    try:
        with zipfile.ZipFile(path) as file:
            meta = archive.read_meta(file)
            _check_same_run(meta, fleet)
            n = fleet.plan.n
            progress = Progress(
                server_round=int(meta["round"]),
                traffic=_per_node(meta["traffic"], n, np.int64),
                energy=_per_node(meta["energy"], n, np.float64),
                bound={int(node_id): int(index) for node_id, index in meta["bound"].items()},
                history={
                    kind: {int(r): metrics for r, metrics in rounds.items()}
                    for kind, rounds in meta["history"].items()
                },
                # Files of before it was kept have none.
                importance=checked_importance(
                    meta.get("importance", {}).items(), {spec.name for spec in fleet.layout.specs}
                ),
            )
            models = archive.read_array(file, "models", ArraySpec("models", fleet.models.shape, "float32"))
            carried = [_read_carried(file, node, fleet.layout) for node in range(n)]
            memories = [
                _read_memory(file, node, fleet, specs)
                # Files of before mixers had memories have none.
                for node, specs in zip(range(n), meta.get("memories", [[]] * n), strict=True)
            ]
            fleet.restore(models, carried, memories)
    except CheckpointError:
        raise
    except archive.DAMAGE as error:
        raise CheckpointError(f"{path} is not a whole checkpoint of flower_edge: {error}") from error
    return progress


def _check_same_run(meta: Any, fleet: Fleet) -> None:
    if meta["version"] != VERSION:
        raise CheckpointError(f"the checkpoint has version {meta['version']}, expected {VERSION}")
    if meta["plan"] != fleet.plan.digest():
        raise CheckpointError(
            "the checkpoint was written under another plan; resume with that plan, or start a new file"
        )
    if meta["layout"] != archive.layout_meta(fleet.layout):
        raise CheckpointError(
            "the checkpoint holds another model; resume with that model, or start a new file"
        )
    if (mixer := meta.get("mixer", "DPSGD, fp32")) != fleet.mixer_name:
        raise CheckpointError(
            f"the checkpoint was written with mixer {mixer!r:.60}, expected {fleet.mixer_name!r}; resume "
            "with that mixer and compressor, or start a new file"
        )


def _carried_name(node: int, name: str) -> str:
    return f"carried/{node}/{name}"


def _read_carried(file: zipfile.ZipFile, node: int, layout: Layout) -> Carried:
    return {
        spec.name: archive.read_array(file, _carried_name(node, spec.name), spec).copy()
        for spec in layout.specs
        if not spec.mixed
    }


def _memory_name(node: int, name: str) -> str:
    return f"memory/{node}/{name}"


def _memory_meta(state: State) -> list[list[Any]]:
    return [[name, list(array.shape), str(array.dtype)] for name, array in state.items()]


def _read_memory(file: zipfile.ZipFile, node: int, fleet: Fleet, specs: list[list[Any]]) -> State:
    memory: State = {}
    for name, shape, dtype in specs:
        spec = ArraySpec(_memory_name(node, name), tuple(shape), dtype)
        counts = dtype in ("int64", "float64") and spec.size <= MAX_COUNTS * fleet.plan.n
        vector = dtype in ("float32", "float64") and spec.shape == (fleet.layout.size,)
        if not counts and not vector:
            raise CheckpointError(
                f"the checkpoint claims to hold {spec}, expected vectors of the model or few counts"
            )
        memory[name] = archive.read_array(file, spec.name, spec)
    return memory


def _per_node(values: list[float], n: int, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    array = np.asarray(values, dtype)
    if array.shape != (n,):
        raise CheckpointError(f"a figure per node has shape {array.shape}, expected ({n},)")
    return array
