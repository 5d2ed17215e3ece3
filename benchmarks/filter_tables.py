"""The tables of docs/training.md on filtered layers, their accuracy and their speed, from the kept results.

``python -m benchmarks.filter_tables [--write]`` prints them as Markdown, or puts them into the page, between
the comments that mark their places. Run it after ``python -m benchmarks.gradient_filter`` and
``python -m benchmarks.gradient_filter_accuracy``.
"""

import argparse
import json
from collections.abc import Iterable, Sequence
from math import exp, log
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.filter_layers import PAPER
from benchmarks.gradient_filter import COMPILED, EXACT, FOURIER, OURS, SPECTRUM, patch
from benchmarks.harness import RESULTS

PAGE = Path(__file__).parents[1] / "docs/training.md"
BEGIN, END = "<!-- python -m benchmarks.filter_tables --write -->", "<!-- end of tables -->"
BEGIN_ACCURACY, END_ACCURACY = BEGIN.replace("python", "accuracy: python"), END.replace("tables", "accuracy")

Row = dict[str, Any]
_COLUMNS = (
    ("published, compiled, r = 2", COMPILED, patch(2)),
    ("Walsh, r = 2", OURS, patch(2)),
    ("Walsh, r = 4", OURS, patch(4)),
    (f"Fourier, {SPECTRUM}", FOURIER, SPECTRUM),
)


def tables(results: Path = RESULTS / "gradient_filter.json") -> str:
    """Write both tables, of layers and of steps, as Markdown."""
    kept = json.loads(results.read_text())
    rows, machine = kept["rows"], kept["machine"]
    layers = [row for row in rows if not row["what"].endswith(" step")]
    steps = [row for row in rows if row["what"].endswith(" step")]
    return "\n\n".join(
        (
            f"*Measured* on {machine['cpu']}, {machine['cores']} cores, torch {machine['torch']}. "
            "Torch's exact backward pass in milliseconds, and how many times faster others are, each with 1 "
            "and 2 threads; batches of 32:",
            _layer_table(layers),
            "Whole training steps, batches of 8 images of 224×224, in milliseconds, and how many times "
            "faster than torch's exact ones (those with frozen norms: than exact ones with frozen norms):",
            _step_table(steps),
        )
    )


def accuracy_table(results: Path = RESULTS / "gradient_filter_accuracy.json") -> str:
    """Write what filtering costs in accuracy as Markdown."""
    lines = [
        (
            *("trained and filtered", "way", "accuracy", "lost against exact"),
            *("operations fewer", "backward faster"),
        )
    ]
    for row in json.loads(results.read_text())["rows"]:
        network = {"resnet20": "ResNet-20", "mobilenet_v2": "MobileNetV2"}[row["network"]]
        gossip = f", gossip of {row['nodes']}" if row["nodes"] > 1 else ""
        layers = {"all": "all but the stem", "last 1": "last layer"}.get(row["layers"], row["layers"])
        ours = row["share_of_step_counted"] > 0
        lines.append(
            (
                f"{network}{gossip}, {layers}",
                row["method"],
                f"{row['accuracy']:.1f} %",
                "" if row["method"] == "exact" else f"{row['lost']:.2f} ± {row['spread_lost']:.2f}",
                f"{row['operations_fewer_counted']:.2g}×" if ours else "",
                f"{row['backward_faster_measured']:.1f}×" if ours else "",
            )
        )
    return _markdown(lines)


def _layer_table(rows: Sequence[Row]) -> str:
    lines = [("layer", "torch, ms", *(name for name, _, _ in _COLUMNS))]
    names = list(dict.fromkeys(row["what"] for row in rows))
    for name in names:
        exact = _pair(f"{row['milliseconds']:.4g}" for row in _found(rows, name, EXACT, ""))
        others = (
            _pair(f"{row['times_faster_than_exact']:.3g}" for row in _found(rows, name, method, size))
            for _, method, size in _COLUMNS
        )
        lines.append((name, exact, *others))
    paper = {str(layer) for layer in PAPER}
    if paper <= set(names):
        lines.append(("the seven of the paper, geometric mean", "", *_means(rows, paper)))
    return _markdown(lines)


def _means(rows: Sequence[Row], layers: Iterable[str]) -> list[str]:
    cells = []
    for _, method, size in _COLUMNS:
        taken = [_found(rows, layer, method, size) for layer in layers]
        ratios = zip(*([row["times_faster_than_exact"] for row in found] for found in taken), strict=True)
        cells.append(_pair(f"{exp(mean(map(log, of_layers))):.3g}" for of_layers in ratios))
    return cells


def _step_table(rows: Sequence[Row]) -> str:
    lines = [("network", "way", "ms", "times faster")]
    for what, method in dict.fromkeys((row["what"], row["method"]) for row in rows):
        found = _found(rows, what, method, None)
        times = _pair(f"{row['milliseconds']:.4g}" for row in found)
        faster = _pair(f"{row['times_faster_than_exact']:.3g}" for row in found)
        lines.append((what.removesuffix(" step"), method, times, faster))
    return _markdown(lines)


def _found(rows: Iterable[Row], what: str, method: str, size: str | None) -> list[Row]:
    """Find the rows of one cell, that with the fewest threads first."""
    found = [row for row in rows if (row["what"], row["method"]) == (what, method)]
    found = [row for row in found if size is None or row["patch"] == size]
    return sorted(found, key=lambda row: int(row["threads"]))


def _pair(cells: Iterable[str]) -> str:
    return ", ".join(cells)


def _markdown(lines: Sequence[Sequence[str]]) -> str:
    head, *body = (f"| {' | '.join(line)} |" for line in lines)
    numbers = len(lines[0]) - (2 if "way" in lines[0] else 1)
    rule = "|---" * (len(lines[0]) - numbers) + "|---:" * numbers + "|"
    return "\n".join((head, rule, *body))


def with_tables(page: str, made: str, begin: str = BEGIN, end: str = END) -> str:
    """Put tables into a page, between two comments.

    Raises
    ------
    ValueError
        If the page does not say where.
    """
    before, found, rest = page.partition(begin)
    _, found_end, after = rest.partition(end)
    if not (found and found_end):
        raise ValueError(f"expected {begin} and {end} in the page")
    return f"{before}{begin}\n\n{made}\n\n{end}{after}"


def filled(page: str) -> str:
    """Put all tables into the page."""
    return with_tables(with_tables(page, tables()), accuracy_table(), BEGIN_ACCURACY, END_ACCURACY)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="put them into docs/training.md")
    if parser.parse_args().write:
        PAGE.write_text(filled(PAGE.read_text()))
    else:
        print(accuracy_table(), tables(), sep="\n\n")
