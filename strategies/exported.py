"""The model that boards have sent last, on the server's disk beside the resume file."""

from __future__ import annotations

import zipfile
from pathlib import Path

from flwr.app import ArrayRecord

from flower_edge.gossip.codec import Layout
from flower_edge.strategies import archive
from flower_edge.strategies.archive import CheckpointError
from flower_edge.strategies.records import to_numpy, to_record

VERSION = 1


def path_beside(resume: Path) -> Path:
    """Return where the model of a run lies."""
    return resume.with_name(resume.name + ".model")


def save(path: Path, run: str, arrays: ArrayRecord, layout: Layout) -> None:
    """Write the model of a run: after a crash at any moment the file is the old one or the new one, whole.

    Raises
    ------
    OSError
        If it cannot be written. The file that was there is untouched.
    """
    meta = {"version": VERSION, "run": run, "layout": archive.layout_meta(layout)}
    named = {f"arrays/{name}": array for name, array in to_numpy(arrays, layout).items()}
    archive.write(path, meta, named, "the model that was exported")


def load(path: Path, run: str, layout: Layout) -> ArrayRecord | None:
    """Return the model of a run; None if there is none, or another run's.

    Raises
    ------
    CheckpointError
        If the file is damaged, of another version, or holds another model.
    """
    if not path.exists():
        return None
    try:
        with zipfile.ZipFile(path) as file:
            meta = archive.read_meta(file)
            if meta["version"] != VERSION:
                raise CheckpointError(f"{path} has version {meta['version']!r:.60}, expected {VERSION}")
            if meta["run"] != run:
                return None
            if meta["layout"] != archive.layout_meta(layout):
                raise CheckpointError(
                    f"{path} holds another model; resume with that model, or start a new file"
                )
            return to_record(
                {spec.name: archive.read_array(file, f"arrays/{spec.name}", spec) for spec in layout.specs}
            )
    except CheckpointError:
        raise
    except archive.DAMAGE as error:
        raise CheckpointError(f"{path} is not a whole model of flower_edge: {error}") from error
