"""The tables of the page on training say what the kept results say."""

import json
from pathlib import Path

import pytest

from benchmarks.filter_tables import BEGIN, END, PAGE, accuracy_table, filled, tables, with_tables
from benchmarks.harness import RESULTS


def test_the_page_shows_the_kept_results() -> None:
    page = PAGE.read_text()
    assert filled(page) == page, "run python -m benchmarks.filter_tables --write"


def test_each_layer_has_a_line_with_both_numbers_of_threads(tmp_path: Path) -> None:
    kept = json.loads((RESULTS / "gradient_filter.json").read_text())
    for row in kept["rows"]:
        row["times_faster_than_exact"] = 10.0 * row["threads"]
    (tmp_path / "kept.json").write_text(json.dumps(kept))
    made = tables(tmp_path / "kept.json")
    layers = {row["what"] for row in kept["rows"] if not row["what"].endswith(" step")}
    assert all(sum(line.startswith(f"| {layer} |") for line in made.splitlines()) == 1 for layer in layers)
    assert "| the seven of the paper, geometric mean |  | 10, 20 | 10, 20 | 10, 20 | 10, 20 |" in made


def test_each_way_has_a_line_with_its_loss() -> None:
    kept = json.loads((RESULTS / "gradient_filter_accuracy.json").read_text())

    lines = accuracy_table().splitlines()[2:]

    assert len(lines) == len(kept["rows"])
    assert all(f"{row['accuracy']:.1f} %" in line for row, line in zip(kept["rows"], lines, strict=True))


def test_a_page_without_a_place_is_refused() -> None:
    assert with_tables(f"a {BEGIN} old {END} b", "new") == f"a {BEGIN}\n\nnew\n\n{END} b"
    with pytest.raises(ValueError, match="in the page"):
        with_tables("a page", "new")
