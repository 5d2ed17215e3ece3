"""What every benchmark relies on: claims that can fail, fair ratios, whole result files."""

import argparse
import json
import sys
from pathlib import Path

import pytest

from benchmarks import harness
from benchmarks.harness import PLOT, Benchmark, Timing, interleaved


def test_a_claim_that_does_not_hold_fails_the_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmark", "--quick"])

    def main(bench: Benchmark) -> None:
        bench.row(method="ours", seconds=0.5)
        bench.at_least("times faster", 1.2, 1.5)

    with pytest.raises(SystemExit) as stopped:
        harness.run("example", "An example.", main)

    assert stopped.value.code == 1
    assert "DOES NOT HOLD: times faster: at least 1.5; found 1.2" in capsys.readouterr().out


def test_where_nothing_was_found_nothing_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """A long benchmark that got too little time must not replace its committed table by an empty one."""
    monkeypatch.setattr(sys, "argv", ["benchmark"])
    monkeypatch.setattr(Benchmark, "write", lambda self: pytest.fail("it was written"))

    with pytest.raises(SystemExit, match="nothing was found"):
        harness.run("example", "An example.", lambda bench: None)


def test_options_are_in_the_help_and_in_the_benchmark(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def needed(text: str) -> str:
        raise argparse.ArgumentTypeError("name a folder")

    def main(bench: Benchmark) -> None:
        found.append(bench.options.plot)

    found: list[str] = []
    data = harness.option("--data", type=needed, default="")
    for arguments, options in ((["--help"], [PLOT, data]), (["--plot", "bars.png", "--quick"], [PLOT])):
        monkeypatch.setattr(sys, "argv", ["benchmark", *arguments])
        with pytest.raises(SystemExit):
            harness.run("example", "An example.", main, *options)

    assert {"--plot", "--data", "--quick"} <= set(capsys.readouterr().out.replace("[", " ").split())
    assert found == ["bars.png"]


@pytest.mark.parametrize(
    ("value", "at_least", "at_most"), [(1.0, True, True), (1.1, True, False), (float("nan"), False, False)]
)
def test_bounds(value: float, at_least: bool, at_most: bool) -> None:
    low, high = Benchmark("example", quick=True), Benchmark("example", quick=True)
    low.at_least("figure", value, 1.0)
    high.at_most("figure", value, 1.0)

    assert (low.holds, high.holds) == (at_least, at_most)


def test_ratios_are_taken_round_by_round() -> None:
    """The machine slows down fourfold in the middle; the ratio does not notice."""
    ours, theirs = Timing((1.0, 1.0, 4.0, 4.0, 4.0)), Timing((2.0, 2.0, 8.0, 8.0, 8.0))

    assert theirs.over(ours) == 2.0


def test_every_contender_is_called_in_every_round() -> None:
    calls: list[str] = []
    timings = interleaved({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, seconds=0.0)

    assert {name: len(timing.seconds) for name, timing in timings.items()} == {"a": 7, "b": 7}
    assert calls[-14:].count("a") == 7


def test_few_repeats_are_refused() -> None:
    with pytest.raises(ValueError, match="repeats is 3, expected at least 7"):
        interleaved({"a": lambda: None}, repeats=3)


def test_the_result_file_holds_machine_rows_and_claims(tmp_path: Path) -> None:
    bench = Benchmark("example", quick=False)
    bench.row(method="ours", seconds=0.123456789)
    bench.at_most("seconds", 0.123456789, 1.0)

    result = json.loads(bench.write(tmp_path).read_text())

    assert result["rows"] == [{"method": "ours", "seconds": 0.1235}]
    assert result["claims"] == [{"text": "seconds: at most", "value": 0.1235, "bound": 1.0, "holds": True}]
    assert result["machine"]["cores"] >= 1
    assert [path.name for path in tmp_path.iterdir()] == ["example.json"]


def test_rows_have_the_same_columns() -> None:
    bench = Benchmark("example", quick=True)
    bench.row(method="ours")

    with pytest.raises(ValueError, match="row has columns"):
        bench.row(way="theirs")
