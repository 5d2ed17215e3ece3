"""Outcomes of long runs, one file each: a table takes hours, and a cut-off must not lose what is done.

A run is found again by everything that decides its outcome. ``python -m benchmarks.kept_runs NAME`` gathers
the outcomes of a benchmark into ``benchmarks/results/runs/NAME.jsonl``, which is committed: any machine goes
on from there, and a table can be traced to its runs. Remove that file and the folder to run all anew.
"""

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from benchmarks.cifar import cache_folder
from benchmarks.harness import cores, option
from benchmarks.pretrain import CHECKPOINTS

HOURS = option(
    "--hours",
    metavar="H",
    type=float,
    default=1e4,
    help="after which no run begins (default: never)",
)
GATHERED = Path(__file__).parent / "results" / "runs"
_DIGITS = 16
"""Of a run's name; other files in the folder, such as profiles, belong to one machine."""


def kept_at(benchmark: str, decides: Sequence[Any]) -> Path:
    """Return where the outcome of a run is kept.

    Parameters
    ----------
    benchmark : str
        Names the folder.
    decides : sequence
        What the outcome depends on, in terms of JSON.
    """
    folder = cache_folder() / benchmark
    _hand_out(GATHERED / f"{benchmark}.jsonl", folder)
    name = hashlib.sha256(json.dumps(decides).encode()).hexdigest()[:_DIGITS]
    return folder / f"{name}.json"


@cache
def _hand_out(gathered: Path, folder: Path) -> None:
    lines = gathered.read_text().splitlines() if gathered.exists() else []
    for name, outcome in map(json.loads, lines):
        path = folder / f"{name}.json"
        if not path.exists():
            keep(path, outcome)


def gather(benchmark: str) -> Path:
    """Write all kept outcomes of a benchmark into one file, a line each; return its path."""
    kept = sorted((cache_folder() / benchmark).glob(f"{'[0-9a-f]' * _DIGITS}.json"))
    lines = [json.dumps([path.stem, json.loads(path.read_text())]) + "\n" for path in kept]
    GATHERED.mkdir(parents=True, exist_ok=True)
    target = GATHERED / f"{benchmark}.jsonl"
    scratch = target.with_suffix(".tmp")
    scratch.write_text("".join(lines))
    scratch.replace(target)
    return target


def checkpoint_digest(network: str) -> str:
    """Return the digest of a network's checkpoint, which decides every outcome that begins with it."""
    return hashlib.sha256((CHECKPOINTS / f"{network}.safetensors").read_bytes()).hexdigest()


def keep(path: Path, outcome: Mapping[str, Any]) -> None:
    """Write an outcome, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(f".{os.getpid()}.tmp")
    scratch.write_text(json.dumps(outcome))
    scratch.replace(path)


def runners(device: str = "cpu") -> ProcessPoolExecutor:
    """Start the processes that do runs: two, or one for each core where a GPU works for them.

    What a GPU does for one process leaves most of it idle.
    """
    processes = min(2, cores()) if device == "cpu" else cores()
    return ProcessPoolExecutor(processes, get_context("spawn"), _compute_in_float32)


def _compute_in_float32() -> None:
    torch.set_num_threads(1)
    torch.backends.cudnn.allow_tf32 = False


def say(progress: str) -> None:
    """Tell a person who watches the terminal how far the runs are."""
    if sys.stderr.isatty():
        print(progress, file=sys.stderr, flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kept_runs", description=gather.__doc__)
    parser.add_argument("benchmark", help="for example gradient_filter_accuracy")
    print(f"written to {gather(parser.parse_args().benchmark)}")
