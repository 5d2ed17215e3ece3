"""The demo and its private Flower, run for real on a few nodes: what they write, say and leave behind."""

import json
import os
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from processes import heed_ctrl_c
from rich.console import Console

from examples import demo
from examples.simulation import LocalFlower, SimulationError
from flower_edge.gossip import full_graph_plan, load_graph

ROOT = Path(__file__).parents[2]
NODES = 2


class RememberedFlower(LocalFlower):
    """Tells a test which Flower the demo used."""

    last: LocalFlower

    def __enter__(self) -> "RememberedFlower":
        RememberedFlower.last = self
        return super().__enter__()


@pytest.fixture
def small_demo(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Make the demo small; return its output folder."""
    monkeypatch.setattr(
        demo,
        "CONFIG",
        demo.CONFIG | {"graph": f"complete:{NODES}", "num-server-rounds": 2, "evaluate-every": 1},
    )
    monkeypatch.setattr(demo, "OUTPUT", tmp_path / "demo")
    monkeypatch.setattr(demo, "LocalFlower", RememberedFlower)
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # pytest's handlers stay as they are
    return tmp_path / "demo"


def assert_nothing_left(flower: LocalFlower) -> None:
    assert flower.processes() == []
    assert not flower.folder.exists()


def assert_nothing_unreaped() -> None:
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
        except OSError:  # ended meanwhile
            continue
        assert not (state == "Z" and int(parent) == os.getpid()), f"{stat} was not reaped"


def test_flower_runs_the_optimised_plan(small_demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "METHODS", {"gossip": "the optimised plan"})
    small_demo.mkdir()
    plan = full_graph_plan(load_graph(demo.CONFIG["graph"]))
    plan.to_json(small_demo / "gossip-plan.json")

    metrics = demo.run_all(Console(), NODES, demo.CONFIG)["gossip"]

    assert metrics == json.loads((small_demo / "gossip.json").read_text())
    assert list(metrics["train"]) == list(metrics["evaluate"]) == ["1", "2"]
    for record in metrics["train"].values():
        assert record["nodes-failed"] == record["replies-rejected"] == 0
        assert record["train_loss"] > 0
        assert record["consensus-distance"] >= 0
    for record in metrics["evaluate"].values():
        assert 0 <= record["accuracy-min"] <= record["accuracy"] <= record["accuracy-max"] <= 1
    assert_nothing_left(RememberedFlower.last)
    assert_nothing_unreaped()


def test_it_ends_with_a_table_and_a_report(
    small_demo: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Only the runs are made up: one is done for real above."""
    gossip = {
        "train": {
            r: {"busiest-node-energy-wh": 1.0, "busiest-node-bytes": 8, "consensus-distance": 0.5}
            for r in "12"
        },
        "evaluate": {r: {"accuracy": 0.5, "accuracy-min": 0.4, "accuracy-max": 0.6} for r in "12"},
    }
    monkeypatch.setattr(demo, "run_all", lambda *_: dict.fromkeys(demo.METHODS, gossip))

    status = demo.main()

    printed = capfd.readouterr()
    assert status == 0, printed.err
    assert all(name in printed.out for name in demo.METHODS.values())
    assert "The optimised plan reaches 49.5%" in printed.out
    assert json.loads((small_demo / "gossip-plan.json").read_text())["n"] == NODES
    assert (small_demo / "report.png").read_bytes().startswith(b"\x89PNG")
    assert "The optimised plan reaches 49.5%" in (small_demo / "report.html").read_text("utf-8")


def test_a_failing_run_ends_it_with_the_cause(
    small_demo: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    nowhere = str(small_demo / 'not "there"')
    monkeypatch.setattr(demo, "CONFIG", demo.CONFIG | {"dataset": "fashion-mnist", "data-path": nowhere})

    status = demo.main()

    error = capfd.readouterr().err
    assert status == 1
    assert "Flower says finished:failed" in error
    assert f"data-path {nowhere!r} has no train-images-idx3-ubyte, plain or .gz" in error
    assert not (small_demo / "report.html").exists()
    assert_nothing_left(RememberedFlower.last)
    assert_nothing_unreaped()


def test_an_app_that_is_none_is_the_cause(tmp_path: Path) -> None:
    with LocalFlower() as flower, pytest.raises(SimulationError, match="Flower did not start the run"):
        flower.run(tmp_path, 2, {})

    assert_nothing_left(flower)


def test_ctrl_c_leaves_nothing_behind(tmp_path: Path) -> None:
    script = f"""
from pathlib import Path
from examples.simulation import LocalFlower
with LocalFlower() as flower:
    print(flower.folder, flush=True)
    config = {{"strategy": "gossip-full", "graph": "complete:2", "num-server-rounds": 1000}}
    flower.run(Path({str(demo.APP)!r}), 2, config, lambda r: print("round", r, flush=True))
"""
    with subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        preexec_fn=heed_ctrl_c,
    ) as process:
        assert process.stdout is not None
        flower = LocalFlower()
        flower.folder = Path(process.stdout.readline().strip())
        assert process.stdout.readline().startswith("round 1")
        assert len(flower.processes()) > 3
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)

    assert process.returncode != 0
    assert_nothing_left(flower)


def test_the_quickstart_has_the_best_rate_of_the_grid() -> None:
    config = tomllib.loads((demo.APP / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"]

    assert config["learning-rate"] == demo.best_learning_rate()
    assert f"| {config['learning-rate']:g} |" in (ROOT / "docs" / "learning_rate.md").read_text()
