"""Files that are either written whole or not at all."""

import os
import tempfile
from pathlib import Path


def check_target(path: Path, *, force: bool, suffix: str = "") -> None:
    """Fail before any work starts if `path` could not be written later.

    Raises
    ------
    ValueError
        If it exists and `force` is not set, is a folder, or does not end in `suffix`.
    OSError
        If no file can be made in its folder.
    """
    if suffix and path.suffix.lower() != suffix:
        raise ValueError(f"received {str(path)!r}, expected a name that ends in {suffix}")
    if path.is_dir():
        raise ValueError(f"{str(path)!r} is a folder, expected the name of a file")
    if path.exists() and not force:
        raise ValueError(f"{str(path)!r} exists: choose another name, or replace it with --force")
    if not path.parent.exists():
        raise OSError(f"cannot write {str(path)!r}: there is no folder {str(path.parent)!r}, make it first")
    try:
        # Asking the file system is surer than reading permissions: it knows of read-only mounts and of root.
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise _cannot_write(path, error) from error


def write_whole(path: Path, content: bytes, *, force: bool) -> None:
    """Write a file so that `path` is, after a crash at any moment, the old file, if any, or the new one.

    Raises
    ------
    ValueError
        As for `check_target`.
    OSError
        If it cannot be written. Nothing is left of it then.
    """
    # A solve may have taken minutes, in which somebody else may have made the file.
    check_target(path, force=force)
    target = path.resolve()
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        with partial.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(target)
    except OSError as error:
        raise _cannot_write(path, error) from error
    finally:
        partial.unlink(missing_ok=True)


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


def _cannot_write(path: Path, error: OSError) -> OSError:
    return OSError(f"cannot write {str(path)!r}: {error.strerror}")
