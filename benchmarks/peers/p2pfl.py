"""What a round of gossip costs beside its training, ours and p2pfl's; the bare training loop is the unit.

``python -m benchmarks.peers.p2pfl --data FOLDER --venv FOLDER [--quick]``. Eight nodes on a ring, each with
1,000 images of Fashion-MNIST and a LeNet of 44,426 parameters; an epoch of SGD in batches of 32 in each
round. ``--data``: see `benchmarks.peers.task`. ``--venv``, or FLOWER_EDGE_P2PFL, names a virtual environment
of Python 3.11 or 3.12 with p2pfl::

    python3 -m venv FOLDER
    FOLDER/bin/pip install torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu
    FOLDER/bin/pip install -r benchmarks/peers/p2pfl.txt

Each node is a process; torch has one thread in each. CPU seconds are those of all threads of all processes,
user and system, from where nodes begin to train for their second round to where they begin to train for
their last: without start-up. The bare loop and ours are measured on one core and on all: where several are
busy a second of each may do less (they share caches and power, and may be two halves of one), so that the
same loop takes more seconds in eight processes than in one, without any exchange. It is in the table, too.

Bytes are those of all nodes together: ours as the kernel counts them at the sockets where they arrive, with
TLS, its handshakes and HTTP/2 (what TCP sends again does not count); p2pfl's as the messages' own, in clear
text, since it has no certificates of its own. p2pfl averages the models of all nodes in each round and hands
them on along the ring; ours mixes by D-PSGD with two neighbours, and keeps a state on disk. p2pfl has all
cores.
"""

import json
import statistics
import subprocess
import sys
import tempfile
from argparse import ArgumentParser, ArgumentTypeError
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import harness
from benchmarks.peers.task import FILES, LINKS, NODES, PARAMETERS
from benchmarks.peers.together import together
from examples.simulation import free_ports
from flower_edge.peer import Identity

DATA, VENV = "FLOWER_EDGE_FASHION_MNIST", "FLOWER_EDGE_P2PFL"
LEAST_BYTES = 2 * LINKS * 4 * PARAMETERS

BARE, EIGHT, OURS = "bare loop, one process", "bare loop, eight processes", "flower_edge"

Found = dict[str, float]


def main(bench: harness.Benchmark) -> None:
    """Run the bare loop and our session in turn, then p2pfl once."""
    data, python = bench.options.data, bench.options.venv
    rounds, repeats, their_rounds = (8, 1, 3) if bench.quick else (16, 3, 6)
    found: dict[tuple[str, str], list[Found]] = defaultdict(list)
    for _ in range(repeats):
        for cores in ["one"] if bench.quick else ["one", "all"]:
            config = {"data": str(data), "rounds": rounds, "one_core": cores == "one"}
            found[BARE, cores].append(bare(config, [list(range(NODES))]))
            found[OURS, cores].append(ours(config))
            if not bench.quick:
                found[EIGHT, cores].append(bare(config, [[node] for node in range(NODES)]))
    found["p2pfl", "all"].append(theirs({"data": str(data), "rounds": their_rounds}, python))
    for (name, cores), runs in found.items():
        middle = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        bench.row(
            what=name,
            cores=cores,
            cpu_seconds_a_round=middle["cpu_seconds"],
            times_the_bare_loop=times(runs, found[BARE, "one" if bench.quick else cores]),
            seconds_a_round=middle["seconds"],
            megabytes_a_round=middle["bytes"] / 1e6,
            times_two_models_a_link=middle["bytes"] / LEAST_BYTES,
        )
    for cores in ["one"] if bench.quick else ["one", "all"]:
        bench.at_most(
            f"CPU seconds a round of eight nodes, in times of the bare training loop in one process, cores: "
            f"{cores} (measured)",
            times(found[OURS, cores], found[BARE, cores]),
            1.3,
        )
    sessions = found[OURS, "one"]
    wire = statistics.median(run["bytes"] for run in sessions)
    bench.at_most("bytes on the wire, in times of two models a link (measured)", wire / LEAST_BYTES, 1.01)


def times(runs: Sequence[Found], units: Sequence[Found]) -> float:
    """Return the CPU seconds of runs in those of units, medians."""
    return statistics.median(run["cpu_seconds"] for run in runs) / statistics.median(
        unit["cpu_seconds"] for unit in units
    )


def options() -> list[ArgumentParser]:
    """Return the options that name the images and p2pfl's environment, which have to be there."""
    return [
        harness.folder_option("--data", DATA, _images, "with Fashion-MNIST in IDX files"),
        harness.folder_option("--venv", VENV, _python, "a virtual environment with p2pfl"),
    ]


def _images(named: str) -> Path:
    if not named:
        raise ArgumentTypeError(f"name a folder with Fashion-MNIST in IDX files by --data FOLDER or {DATA}")
    if missing := [name for name in FILES.values() if not Path(named, name).is_file()]:
        raise ArgumentTypeError(f"there is no {missing[0]} in {named!r}")
    return Path(named)


def _python(named: str) -> Path:
    if not named:
        raise ArgumentTypeError(
            f"name a virtual environment with p2pfl by --venv FOLDER or {VENV}; see this module"
        )
    python = Path(named, "bin", "python")
    question = [str(python), "-c", "import importlib.metadata; importlib.metadata.version('p2pfl')"]
    if not python.is_file() or subprocess.run(question, capture_output=True, check=False).returncode:
        raise ArgumentTypeError(f"there is no virtual environment with p2pfl at {named!r}")
    return python


def bare(config: dict[str, Any], processes: Sequence[list[int]]) -> Found:
    """Return what a round of training takes, in as many processes as there are lists of nodes."""
    return summed("bare", [{**config, "nodes": nodes} for nodes in processes])


def ours(config: dict[str, Any]) -> Found:
    """Return what a round takes eight nodes of ours."""
    with tempfile.TemporaryDirectory() as folder:
        for node in range(NODES):
            Identity.temporary().save(Path(folder, f"{node}.key"), Path(folder, f"{node}.crt"))
        common = {**config, "folder": folder, "ports": free_ports(NODES)}
        return summed("session", [{**common, "node": node} for node in range(NODES)])


def theirs(config: dict[str, Any], python: Path) -> Found:
    """Return what a round takes eight nodes of p2pfl."""
    with tempfile.TemporaryDirectory() as folder:
        common = {**config, "folder": folder, "ports": free_ports(NODES)}
        return summed("p2pfl_start", [{**common, "node": node} for node in range(NODES)], python)


def summed(module: str, configs: Sequence[dict[str, Any]], python: Path | None = None) -> Found:
    """Run a process for each config at once; return the sums of what they say (of seconds the most).

    Raises
    ------
    SystemExit
        If one of them fails: with the end of what it wrote.
    """
    command = [str(python or sys.executable), "-m", f"benchmarks.peers.{module}"]
    said = together([[*command, json.dumps(config)] for config in configs], {"OMP_NUM_THREADS": "1"})
    most = max(one["seconds"] for one in said)
    return {key: sum(one[key] for one in said) for key in said[0]} | {"seconds": most}


if __name__ == "__main__":
    harness.run("peers.p2pfl", __doc__, main, *options())
