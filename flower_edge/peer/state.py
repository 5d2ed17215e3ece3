"""What a node keeps on disk: its model after the last round that it has done."""

import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from flower_edge.gossip.codec import Vector, is_finite

MAGIC = b"flower_edge session 1\n"
_DIGEST_BYTES = hashlib.sha256().digest_size
_LARGEST_HEADER = 2**20
_LARGEST_EXTRA = 2**28


class StateError(ValueError):
    """A file that is no whole state, or that of another run, node or model."""


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
    last_counted : dict of int to int
        For each neighbour, the last round in which the link to it counted.
    extra : bytes
        What the trainer wants to keep beside the model.
    """

    run: bytes
    node: int
    round: int
    model: Vector
    last_counted: dict[int, int] = field(default_factory=dict)
    extra: bytes = b""

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
                "last_counted": {str(node): round for node, round in self.last_counted.items()},
                "elements": len(self.model),
                "extra": len(self.extra),
            }
        ).encode()
        parts: list[bytes | memoryview] = [
            MAGIC,
            header + b"\n",
            np.ascontiguousarray(self.model, "<f4").data.cast("B"),
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
            _sync_folder(path.parent)
        except OSError:
            partial.unlink(missing_ok=True)
            raise

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
                if file.read(len(MAGIC)) != MAGIC:
                    raise StateError(f"{str(path)!r} is no state of a session")
                line = file.readline(_LARGEST_HEADER)
                header = json.loads(line)
                _check_owner(path, header, run, node, elements)
                extra = header["extra"]
                size = len(MAGIC) + len(line) + 4 * elements + extra + _DIGEST_BYTES
                if not 0 <= extra <= _LARGEST_EXTRA or os.fstat(file.fileno()).st_size != size:
                    raise StateError(f"{str(path)!r} is not whole: expected {size} bytes")
                content = file.read()
            if hashlib.sha256(MAGIC + line + content[:-_DIGEST_BYTES]).digest() != content[-_DIGEST_BYTES:]:
                raise StateError(f"{str(path)!r} is damaged: its checksum differs")
            model = np.frombuffer(content, "<f4", elements).astype(np.float32)
            counted = {int(other): int(round_) for other, round_ in header["last_counted"].items()}
            state = cls(
                *(run, node, int(header["round"]), model, counted),
                content[4 * elements : len(content) - _DIGEST_BYTES],
            )
        except (OSError, ValueError, TypeError, LookupError, AttributeError) as error:
            if isinstance(error, StateError):
                raise
            raise StateError(f"cannot read {str(path)!r}: {error}") from error
        if not is_finite(model):
            raise StateError(f"{str(path)!r} has NaN or infinity in its model")
        return state


def _check_owner(path: Path, header: dict[str, Any], run: bytes, node: int, elements: int) -> None:
    found = header["run"], header["node"], header["elements"]
    expected = run.hex(), node, elements
    if found != expected:
        names = ("run", "node", "elements")
        shown = ", ".join(
            f"{n} {f!r} (expected {e!r})" for n, f, e in zip(names, found, expected, strict=True) if f != e
        )
        raise StateError(f"{str(path)!r} is the state of another session: {shown}")


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
