"""What all benchmarks share: the machine, fair timing, a table, a result file, and claims that hold or not.

A benchmark is a module with this outline::

    def main(bench: Benchmark) -> None:
        timings = interleaved({"ours": ours, "theirs": theirs})
        ratio = timings["theirs"].over(timings["ours"])
        bench.row(method="ours", milliseconds=1e3 * timings["ours"].median)
        bench.at_least("times faster than theirs", ratio, 1.5)

    if __name__ == "__main__":
        run("name", __doc__, main)

``run`` prints the table and the claims, writes ``benchmarks/results/NAME.json`` and exits with 1 if a claim
does not hold, or nothing was found. With ``--quick``, or if nothing was found, it writes no file: a hurried
measurement never replaces a committed one.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Timing:
    """Seconds that one call took, once for each round of measurement."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Median over the rounds, in seconds."""
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """Interquartile range over the median: how noisy the machine was."""
        first, _, third = statistics.quantiles(self.seconds, n=4)
        return (third - first) / self.median

    def over(self, other: "Timing") -> float:
        """Median over the rounds of this time divided by the other's of the same round."""
        return statistics.median(
            ours / theirs for ours, theirs in zip(self.seconds, other.seconds, strict=True)
        )


def interleaved(
    contenders: Mapping[str, Callable[[], object]], repeats: int = 7, seconds: float = 0.02
) -> dict[str, Timing]:
    """Time functions side by side, so that whatever else the machine does hits all of them alike.

    Parameters
    ----------
    contenders : mapping of str to callable
        What to time.
    repeats : int, default 7
        Rounds; in each one every contender has one turn, and the one that begins changes from round to round.
    seconds : float, default 0.02
        A turn calls its function as often as it takes to last at least about this long.

    Returns
    -------
    dict of str to Timing
        Seconds per call.

    Raises
    ------
    ValueError
        If `repeats` is below 7: the median of fewer says little.
    """
    if repeats < 7:
        raise ValueError(f"repeats is {repeats}, expected at least 7")
    calls = {}
    for name, function in contenders.items():
        function()  # the first call pays for pages, caches and thread pools
        calls[name] = max(1, round(seconds / _turn(function, 1)))
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    order = list(contenders)
    for _ in range(repeats):
        for name in order:
            samples[name].append(_turn(contenders[name], calls[name]))
        order.append(order.pop(0))
    return {name: Timing(tuple(taken)) for name, taken in samples.items()}


def _turn(function: Callable[[], object], calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        function()
    return (time.perf_counter() - start) / calls


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0))


def machine() -> dict[str, Any]:
    """Describe the machine that the figures come from, and how busy it was."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": _cpu_name(),
        "architecture": platform.machine(),
        "cores": cores(),
        "memory_gib": round(memory / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        **{package: _version(package) for package in ("torch", "numpy", "flwr", "flower_edge")},
        "load_average": round(os.getloadavg()[0], 2),
    }


def _cpu_name() -> str:
    board = Path("/proc/device-tree/model")
    if board.exists():
        return board.read_text().rstrip("\0")
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return "unknown"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


@dataclass
class Benchmark:
    """What one run finds out.

    Attributes
    ----------
    quick : bool
        Whether to measure less, in under a minute on two cores.
    options : Namespace
        What the command line says to the options that `run` was given.
    """

    name: str
    quick: bool
    machine: dict[str, Any] = field(default_factory=machine)
    rows: list[dict[str, Any]] = field(default_factory=list)
    claims: list[dict[str, Any]] = field(default_factory=list)
    options: argparse.Namespace = field(default_factory=argparse.Namespace)

    def row(self, **columns: object) -> None:
        """Add a row to the table; every row has the same columns."""
        if self.rows and columns.keys() != self.rows[0].keys():
            raise ValueError(
                f"row has columns {list(columns)}, expected {list(self.rows[0])} as in the first"
            )
        self.rows.append(columns)

    def at_least(self, text: str, value: float, bound: float) -> None:
        """Claim that a figure reaches a bound; `text` says what it is: measured, counted or modelled."""
        self.claims.append(
            {"text": f"{text}: at least", "value": value, "bound": bound, "holds": bool(value >= bound)}
        )

    def at_most(self, text: str, value: float, bound: float) -> None:
        """Claim that a figure stays within a bound; otherwise as `at_least`."""
        self.claims.append(
            {"text": f"{text}: at most", "value": value, "bound": bound, "holds": bool(value <= bound)}
        )

    @property
    def holds(self) -> bool:
        """Whether every claim holds; a NaN holds nothing."""
        return all(claim["holds"] for claim in self.claims)

    def report(self) -> str:
        """Lay the machine, the table and the claims out for people."""
        about = ", ".join(f"{key} {value}" for key, value in self.machine.items())
        lines = [about, "", *_table(self.rows), ""]
        for claim in self.claims:
            verdict = "holds" if claim["holds"] else "DOES NOT HOLD"
            lines.append(f"{verdict}: {claim['text']} {_cell(claim['bound'])}; found {_cell(claim['value'])}")
        return "\n".join(lines)

    def write(self, folder: Path = RESULTS) -> Path:
        """Write the result file, whole or not at all; return its path."""
        folder.mkdir(exist_ok=True)
        path = folder / f"{self.name}.json"
        found = {"machine": self.machine, "rows": self.rows, "claims": self.claims}
        scratch = path.with_suffix(".tmp")
        scratch.write_text(json.dumps(_rounded(found), indent=1, ensure_ascii=False) + "\n")
        scratch.replace(path)
        return path


def option(name: str, **how: Any) -> argparse.ArgumentParser:
    """Return one option for `run`; `how` is what `ArgumentParser.add_argument` takes."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument(name, **how)
    return parser


def folder_option(
    name: str, variable: str, kind: Callable[[str], object], what: str
) -> argparse.ArgumentParser:
    """Return an option that names a folder, which an environment variable may name, too; `kind` checks it."""
    default = os.environ.get(variable, "")
    return option(name, metavar="FOLDER", type=kind, default=default, help=f"{what} (default: {variable})")


def _device(name: str) -> str:
    import torch

    if name != "cpu" and not torch.cuda.is_available():
        raise argparse.ArgumentTypeError(f"this machine has no GPU that torch {torch.__version__} can use")
    return name


PLOT = option("--plot", metavar="FILE", help="draw what was found, too")
DEVICE = option("--device", type=_device, default="cpu", help="cpu (the default), or cuda")


def run(
    name: str, doc: str | None, main: Callable[[Benchmark], None], *options: argparse.ArgumentParser
) -> NoReturn:
    """Run a benchmark from the command line, then exit: with 1 if a claim does not hold or nothing is found.

    Parameters
    ----------
    name : str
        Names the result file.
    doc : str
        The module's docstring, whose first line is the help text.
    main : callable
        Fills the benchmark that it is given with rows and claims.
    *options : ArgumentParser
        What it takes besides ``--quick``: see `option`.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}",
        description=(doc or "").split("\n")[0],
        parents=options,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--quick", action="store_true", help="measure less, in under a minute; write no result file"
    )
    named = parser.parse_args()
    bench = Benchmark(name, named.quick, options=named)
    main(bench)
    if not bench.rows:
        sys.exit("nothing was found, and nothing is written")
    print(bench.report())
    if not bench.claims:
        print("nothing was claimed")
    if not bench.quick:
        print(f"written to {bench.write()}")
    sys.exit(0 if bench.holds else 1)


def _cell(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _table(rows: list[dict[str, Any]]) -> list[str]:
    if not rows:
        return []
    cells = [
        [name.replace("_", " ") for name in rows[0]],
        *([_cell(value) for value in row.values()] for row in rows),
    ]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in cells]
    return [lines[0], "  ".join("-" * width for width in widths), *lines[1:]]


def _rounded(value: Any) -> Any:
    """Keep four significant digits: more are noise, and make every re-run a large change."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return value
