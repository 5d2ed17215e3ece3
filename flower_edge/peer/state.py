"""What a node keeps on disk: its model after the last round that it has done, and what is open then."""

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from flower_edge._files import sync_folder
from flower_edge.gossip.codec import Vector, is_finite
from flower_edge.gossip.mixer import Doubt, Mixer
from flower_edge.gossip.mixer import State as Memories

MAGIC = b"flower_edge session 3\n"
_DIGEST_BYTES = hashlib.sha256().digest_size
_LARGEST_HEADER = 2**20
_LARGEST_EXTRA = 2**28


class StateError(ValueError):
    """A file that is no whole state, or that of another run, node or model."""


class OpenDoubt(NamedTuple):
    """A link that may have counted in a round, as the other end knows."""

    round: int
    doubt: Doubt


@dataclass(frozen=True)
class State:
    """Where a node stands.

    Parameters
    ----------
    run : bytes
        16 bytes that name the run.
    node : int
    round : int
        The last one that is done.
    model : ndarray of float32, shape (d,)
        After that round's mixing.
    last_counted : dict of int to tuple of int
        For each neighbour, the last two rounds in which the link to it counted, the latest last.
    extra : bytes
        What the trainer wants to keep beside the model.
    mixer : str
        Whose memories these are: the algorithm and its codec.
    memories : dict of str to ndarray
        What the mixer remembers from round to round.
    doubts : dict of int to OpenDoubt
        For each neighbour of which it is not known whether it counts the link, what follows if so.
    """

    run: bytes
    node: int
    round: int
    model: Vector
    last_counted: dict[int, tuple[int, ...]] = field(default_factory=dict)
    extra: bytes = b""
    mixer: str = ""
    memories: Memories = field(default_factory=dict)
    doubts: dict[int, OpenDoubt] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Write the state: after a crash at any moment the file is the old one or the new one, whole.

        Raises
        ------
        OSError
            If it cannot be written. The file that was there is untouched, and nothing else is left.
        """
        header = json.dumps(
            {
                "run": self.run.hex(),
                "node": self.node,
                "round": self.round,
                "last_counted": {str(node): rounds for node, rounds in self.last_counted.items()},
                "elements": len(self.model),
                "extra": len(self.extra),
                "mixer": self.mixer,
                "doubts": {str(node): open_.round for node, open_ in self.doubts.items()},
                "arrays": [[name, array.dtype.name, array.shape] for name, array in self._arrays()],
            }
        ).encode()
        parts: list[bytes | memoryview] = [
            MAGIC,
            header + b"\n",
            np.ascontiguousarray(self.model, "<f4").data.cast("B"),
            *(_bytes(array) for _, array in self._arrays()),
            self.extra,
        ]
        partial = path.with_name(path.name + ".partial")
        try:
            with partial.open("wb") as file:
                digest = hashlib.sha256()
                for part in parts:
                    digest.update(part)
                    file.write(part)
                file.write(digest.digest())
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
            sync_folder(path.parent)
        except OSError:
            partial.unlink(missing_ok=True)
            raise

    def remind(self, mixer: Mixer[Any], name: str, path: str) -> None:
        """Give a mixer back what it remembered.

        Raises
        ------
        StateError
            If it was another algorithm or codec.
        """
        if self.mixer != name and not (mixer.memoryless and not self.memories):
            raise StateError(
                f"{path!r} was written with mixer {self.mixer!r:.60}, expected {name!r}: go on with that "
                "one, or remove the file"
            )
        try:
            mixer.restore(self.memories)
        except (ValueError, KeyError) as error:
            raise StateError(f"{path!r} is no state of {name}: {error}") from error

    def _arrays(self) -> Iterator[tuple[str, npt.NDArray[Any]]]:
        """Yield what is remembered beside the model, by names that `_memories` and `_doubts` know."""
        for name, array in self.memories.items():
            yield f"mixer/{name}", array
        for node, (_, doubt) in self.doubts.items():
            yield f"doubt/{node}/", doubt.change
            for name, array in doubt.memories.items():
                yield f"doubt/{node}/{name}", array

    @classmethod
    def load(cls, path: Path, run: bytes, node: int, elements: int) -> "State":
        """Read the state of a node in a run.

        Raises
        ------
        StateError
            If the file is damaged, or belongs to another run, another node, or a model of another size. Sizes
            are compared before memory is taken.
        """
        try:
            with path.open("rb") as file:
                if (magic := file.read(len(MAGIC))) != MAGIC:
                    raise StateError(
                        f"{str(path)!r} begins with {magic!r}, expected {MAGIC!r}: it is no state of a "
                        "session, or one of another release. Remove it, and the node begins anew"
                    )
                line = file.readline(_LARGEST_HEADER)
                header = json.loads(line)
                _check_owner(path, header, run, node, elements)
                extra, specs = header["extra"], [_Spec.of(*spec) for spec in header["arrays"]]
                kept = sum(spec.bytes for spec in specs)
                size = len(MAGIC) + len(line) + 4 * elements + kept + extra + _DIGEST_BYTES
                if not 0 <= extra <= _LARGEST_EXTRA or os.fstat(file.fileno()).st_size != size:
                    raise StateError(f"{str(path)!r} is not whole: expected {size} bytes")
                content = file.read()
            if hashlib.sha256(MAGIC + line + content[:-_DIGEST_BYTES]).digest() != content[-_DIGEST_BYTES:]:
                raise StateError(f"{str(path)!r} is damaged: its checksum differs")
            model = np.frombuffer(content, "<f4", elements).astype(np.float32)
            counted = {
                int(other): tuple(map(int, rounds)) for other, rounds in header["last_counted"].items()
            }
            arrays = dict(_read(specs, content, 4 * elements))
            state = cls(
                *(run, node, int(header["round"]), model, counted),
                content[4 * elements + kept : len(content) - _DIGEST_BYTES],
                str(header["mixer"]),
                _below("mixer/", arrays),
                {int(j): _open(int(j), round_, arrays) for j, round_ in header["doubts"].items()},
            )
        except (OSError, ValueError, TypeError, LookupError, AttributeError) as error:
            if isinstance(error, StateError):
                raise
            raise StateError(f"cannot read {str(path)!r}: {error}") from error
        vectors = [model, *(array for array in arrays.values() if array.dtype.kind == "f")]
        if not all(map(is_finite, vectors)):
            raise StateError(f"{str(path)!r} has NaN or infinity in its model, or in what belongs to it")
        if any(open_.doubt.change.shape != model.shape for open_ in state.doubts.values()):
            raise StateError(f"{str(path)!r} has a doubt about a model of another size")
        return state


class _Spec(NamedTuple):
    """Name, dtype and shape of an array in the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @classmethod
    def of(cls, name: str, dtype: str, shape: list[int]) -> "_Spec":
        if dtype not in _DTYPES or any(length < 0 for length in shape):
            raise ValueError(f"array {name!r:.60} is {dtype!r:.20} {shape}, expected one of {list(_DTYPES)}")
        return cls(name, dtype, tuple(map(int, shape)))

    @property
    def bytes(self) -> int:
        return prod(self.shape) * np.dtype(_DTYPES[self.dtype]).itemsize


_DTYPES = {"float32": "<f4", "float64": "<f8", "int64": "<i8"}


def _bytes(array: npt.NDArray[Any]) -> memoryview:
    return memoryview(np.ascontiguousarray(array, _DTYPES[array.dtype.name]).view(np.uint8).reshape(-1).data)


def _read(specs: list[_Spec], content: bytes, offset: int) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    for spec in specs:
        flat = np.frombuffer(content, _DTYPES[spec.dtype], prod(spec.shape), offset)
        yield spec.name, flat.astype(spec.dtype).reshape(spec.shape)
        offset += spec.bytes


def _below(prefix: str, arrays: dict[str, npt.NDArray[Any]]) -> Memories:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def _open(node: int, round_: int, arrays: dict[str, npt.NDArray[Any]]) -> OpenDoubt:
    memories = _below(f"doubt/{node}/", arrays)
    return OpenDoubt(int(round_), Doubt(memories.pop(""), memories))


def _check_owner(path: Path, header: dict[str, Any], run: bytes, node: int, elements: int) -> None:
    found = header["run"], header["node"], header["elements"]
    expected = run.hex(), node, elements
    if found != expected:
        names = ("run", "node", "elements")
        shown = ", ".join(
            f"{n} {f!r} (expected {e!r})" for n, f, e in zip(names, found, expected, strict=True) if f != e
        )
        raise StateError(f"{str(path)!r} is the state of another session: {shown}")
