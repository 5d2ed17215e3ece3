"""Arrays and what is said of them in one file on the server's disk, written whole and never trusted."""

from __future__ import annotations

import json
import os
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from flower_edge._files import sync_folder
from flower_edge.gossip.codec import ArraySpec, Layout
from flower_edge.strategies.records import MAX_NPY_HEADER_BYTES, read_npy

MAX_META_BYTES = 256 * 2**20

# What zipfile, json and the conversions raise on damaged bytes; NotImplementedError is a RuntimeError.
DAMAGE = (
    *(zipfile.BadZipFile, zlib.error, OSError, EOFError, RuntimeError),
    *(ValueError, TypeError, AttributeError, LookupError, ArithmeticError),
)


class CheckpointError(ValueError):
    """A checkpoint that cannot be read, or that belongs to another run."""


def write(path: Path, meta: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]], what: str) -> None:
    """Write a file.

    After a crash at any moment `path` is either the old or the new file, whole.

    Parameters
    ----------
    path : Path
    meta : mapping
        Becomes JSON.
    arrays : mapping of str to ndarray
    what : str
        What the file is, for the error.

    Raises
    ------
    OSError
        If the file cannot be written (a full disk, a missing folder). The one before is untouched.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            _write(file, json.dumps(meta).encode(), arrays)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        partial.unlink(missing_ok=True)
        kept = ", the one before is kept" if path.exists() else ""
        raise OSError(error.errno, f"could not write {what}{kept}: {error.strerror}", str(path)) from error


def read_meta(archive: zipfile.ZipFile) -> Any:
    """Return what a file says of itself."""
    return json.loads(_read_member(archive, "meta.json", MAX_META_BYTES))


def read_array(archive: zipfile.ZipFile, name: str, expected: ArraySpec) -> npt.NDArray[Any]:
    """Return an array, which has to be as expected; sizes are compared before memory is taken."""
    limit = expected.size * np.dtype(expected.dtype).itemsize + MAX_NPY_HEADER_BYTES
    return read_npy(_read_member(archive, f"{name}.npy", limit), expected)


def layout_meta(layout: Layout) -> list[list[Any]]:
    """Return the names, shapes and dtypes of a model as JSON has them."""
    return [[spec.name, list(spec.shape), spec.dtype] for spec in layout.specs]


def _write(file: Any, meta: bytes, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("meta.json", meta)
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asarray(array, order="C"), allow_pickle=False)


def _read_member(archive: zipfile.ZipFile, name: str, limit: int) -> bytes:
    size = archive.getinfo(name).file_size
    if size > limit:
        raise CheckpointError(f"{name} claims {size} bytes, at most {limit} are expected")
    return archive.read(name)
