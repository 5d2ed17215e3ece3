"""Outcomes of long runs, one file each: a table takes hours, and a cut-off must not lose what is done.

A run is found again by everything that decides its outcome. Remove the folder to run all anew.
"""

import hashlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.cifar import cache_folder
from benchmarks.pretrain import CHECKPOINTS


def kept_at(benchmark: str, decides: Sequence[Any]) -> Path:
    """Return where the outcome of a run is kept.

    Parameters
    ----------
    benchmark : str
        Names the folder.
    decides : sequence
        What the outcome depends on, in terms of JSON.
    """
    name = hashlib.sha256(json.dumps(decides).encode()).hexdigest()[:16]
    return cache_folder() / benchmark / f"{name}.json"


def checkpoint_digest(network: str) -> str:
    """Return the digest of a network's checkpoint, which decides every outcome that begins with it."""
    return hashlib.sha256((CHECKPOINTS / f"{network}.safetensors").read_bytes()).hexdigest()


def keep(path: Path, outcome: Mapping[str, Any]) -> None:
    """Write an outcome, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(f".{os.getpid()}.tmp")
    scratch.write_text(json.dumps(outcome))
    scratch.replace(path)


def say(progress: str) -> None:
    """Tell a person who watches the terminal how far the runs are."""
    if sys.stderr.isatty():
        print(progress, file=sys.stderr, flush=True)
