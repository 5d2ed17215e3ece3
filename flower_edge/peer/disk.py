"""Files that are whole after a crash at any moment, or not there."""

import os
from pathlib import Path


def write_new(path: Path, content: bytes, mode: int) -> None:
    """Write a file that was not there.

    Raises
    ------
    FileExistsError
        If it is there. Nothing is replaced.
    OSError
        If it cannot be written; nothing is left then.
    """
    partial = path.with_name(path.name + ".partial")
    partial.unlink(missing_ok=True)  # of a process that was killed
    try:
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        # A rename would replace what is there.
        os.link(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
