"""The state of a hosted gossip on disk: one file, replaced atomically."""

from __future__ import annotations

import json
import os
import zipfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from flower_edge.gossip.codec import ArraySpec, Carried, Layout
from flower_edge.gossip.mixer import State
from flower_edge.strategies.fleet import Fleet
from flower_edge.strategies.importance import Importance, checked_importance
from flower_edge.strategies.records import MAX_NPY_HEADER_BYTES, read_npy

VERSION = 1
MAX_META_BYTES = 256 * 2**20
MAX_COUNTS = 4
"""Whole numbers that a mixer remembers, for each node of the plan."""

History = dict[str, dict[int, dict[str, Any]]]


# What zipfile, json and the conversions raise on damaged bytes; NotImplementedError is a RuntimeError.
_DAMAGE = (
    *(zipfile.BadZipFile, zlib.error, OSError, EOFError, RuntimeError),
    *(ValueError, TypeError, AttributeError, LookupError, ArithmeticError),
)


class CheckpointError(ValueError):
    """A checkpoint that cannot be read, or that belongs to another run."""


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
        "layout": _layout_meta(fleet.layout),
        "mixer": fleet.mixer_name,
        "memories": [_memory_meta(mixer.state()) for mixer in fleet.mixers],
        "round": progress.server_round,
        "traffic": progress.traffic.tolist(),
        "energy": progress.energy.tolist(),
        "bound": {str(node_id): index for node_id, index in progress.bound.items()},
        "history": progress.history,
        "importance": progress.importance,
    }
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            _write(file, json.dumps(meta).encode(), fleet)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        _sync_directory(path.parent)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise OSError(
            error.errno,
            f"could not write the checkpoint{', the one before is kept' * path.exists()}: {error.strerror}",
            str(path),
        ) from error


def load(path: Path, fleet: Fleet) -> Progress:
    """Read a checkpoint into `fleet` and return the progress.

    Nothing is unpickled, and sizes are compared with the expected ones before memory is taken.

    Raises
    ------
    CheckpointError
        If the file is damaged, of another version, or of another plan or model. The fleet is then unchanged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            meta = json.loads(_read_member(archive, "meta.json", MAX_META_BYTES))
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
            models = _read_array(archive, "models", ArraySpec("models", fleet.models.shape, "float32"))
            carried = [_read_carried(archive, node, fleet.layout) for node in range(n)]
            memories = [
                _read_memory(archive, node, fleet, specs)
                # Files of before mixers had memories have none.
                for node, specs in zip(range(n), meta.get("memories", [[]] * n), strict=True)
            ]
            fleet.restore(models, carried, memories)
    except CheckpointError:
        raise
    except _DAMAGE as error:
        raise CheckpointError(f"{path} is not a whole checkpoint of flower_edge: {error}") from error
    return progress


def _write(file: Any, meta: bytes, fleet: Fleet) -> None:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("meta.json", meta)
        arrays = {"models": fleet.models}
        for node, carried in enumerate(fleet.carried):
            arrays |= {_carried_name(node, name): array for name, array in carried.items()}
        for node, mixer in enumerate(fleet.mixers):
            arrays |= {_memory_name(node, name): array for name, array in mixer.state().items()}
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asarray(array, order="C"), allow_pickle=False)


def _check_same_run(meta: Any, fleet: Fleet) -> None:
    if meta["version"] != VERSION:
        raise CheckpointError(f"the checkpoint has version {meta['version']}, expected {VERSION}")
    if meta["plan"] != fleet.plan.digest():
        raise CheckpointError(
            "the checkpoint was written under another plan; resume with that plan, or start a new file"
        )
    if meta["layout"] != _layout_meta(fleet.layout):
        raise CheckpointError(
            "the checkpoint holds another model; resume with that model, or start a new file"
        )
    if (mixer := meta.get("mixer", "DPSGD, fp32")) != fleet.mixer_name:
        raise CheckpointError(
            f"the checkpoint was written with mixer {mixer!r:.60}, expected {fleet.mixer_name!r}; resume "
            "with that mixer and compressor, or start a new file"
        )


def _layout_meta(layout: Layout) -> list[list[Any]]:
    return [[spec.name, list(spec.shape), spec.dtype] for spec in layout.specs]


def _carried_name(node: int, name: str) -> str:
    return f"carried/{node}/{name}"


def _read_carried(archive: zipfile.ZipFile, node: int, layout: Layout) -> Carried:
    return {
        spec.name: _read_array(archive, _carried_name(node, spec.name), spec).copy()
        for spec in layout.specs
        if not spec.mixed
    }


def _memory_name(node: int, name: str) -> str:
    return f"memory/{node}/{name}"


def _memory_meta(state: State) -> list[list[Any]]:
    return [[name, list(array.shape), str(array.dtype)] for name, array in state.items()]


def _read_memory(archive: zipfile.ZipFile, node: int, fleet: Fleet, specs: list[list[Any]]) -> State:
    memory: State = {}
    for name, shape, dtype in specs:
        spec = ArraySpec(_memory_name(node, name), tuple(shape), dtype)
        counts = dtype in ("int64", "float64") and spec.size <= MAX_COUNTS * fleet.plan.n
        vector = dtype in ("float32", "float64") and spec.shape == (fleet.layout.size,)
        if not counts and not vector:
            raise CheckpointError(
                f"the checkpoint claims to hold {spec}, expected vectors of the model or few counts"
            )
        memory[name] = _read_array(archive, spec.name, spec)
    return memory


def _read_array(archive: zipfile.ZipFile, name: str, expected: ArraySpec) -> npt.NDArray[Any]:
    limit = expected.size * np.dtype(expected.dtype).itemsize + MAX_NPY_HEADER_BYTES
    return read_npy(_read_member(archive, f"{name}.npy", limit), expected)


def _read_member(archive: zipfile.ZipFile, name: str, limit: int) -> bytes:
    size = archive.getinfo(name).file_size
    if size > limit:
        raise CheckpointError(f"{name} claims {size} bytes, at most {limit} are expected")
    return archive.read(name)


def _per_node(values: list[float], n: int, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    array = np.asarray(values, dtype)
    if array.shape != (n,):
        raise CheckpointError(f"a figure per node has shape {array.shape}, expected ({n},)")
    return array


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
