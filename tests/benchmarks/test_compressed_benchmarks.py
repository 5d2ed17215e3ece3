"""What the benchmarks of compressed gossip measure with."""

from functools import partial
from pathlib import Path

import pytest

from benchmarks import compressed_gossip, consensus_step
from benchmarks.harness import Benchmark
from benchmarks.quickstart_runs import Run
from flower_edge.gossip import ChocoSGD, Int8, TopK


def test_without_much_loss_models_come_together_as_the_plan_says() -> None:
    (plan,) = consensus_step.plans(quick=True).values()

    assert consensus_step.rate(plan, ChocoSGD, Int8()) == pytest.approx(plan.rho, rel=0.02)


def test_too_large_a_step_is_seen() -> None:
    (plan,) = consensus_step.plans(quick=True).values()

    assert consensus_step.rate(plan, partial(ChocoSGD, gamma=1.0), TopK(0.1)) > 1
    assert consensus_step.rate(plan, ChocoSGD, TopK(0.1)) < 0.96


def test_a_codec_is_timed_and_its_bytes_counted() -> None:
    bench = Benchmark("compressed_gossip", quick=True)

    compressed_gossip.measure_codec(bench, Int8().codec(30_000))

    (row,) = bench.rows
    assert row["times_fewer_bytes"] == pytest.approx(4, rel=0.01)
    assert row["encode_gb_s"] > 0


def test_a_run_is_kept_and_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (plan,) = consensus_step.plans(quick=True).values()
    plan.to_json(tmp_path / "plan.json")
    outcome = Run({2: 50.0, 4: 60.5}, {1: 0.5, 2: 1.0, 4: 2.0}, 0.25)
    runs = []

    def once(overrides: dict) -> Run:
        runs.append(overrides)
        return outcome

    monkeypatch.setattr(compressed_gossip, "quickstart_run", once)
    overrides = {"plan": str(tmp_path / "plan.json"), "seed": 0, "compression": "int8"}

    assert compressed_gossip.kept_run(overrides) == compressed_gossip.kept_run(overrides) == outcome
    assert compressed_gossip.kept_run(overrides | {"seed": 1}) == outcome
    assert [each["seed"] for each in runs] == [0, 1]
    monkeypatch.setitem(compressed_gossip.CONFIG, "learning-rate", 0.123)
    assert compressed_gossip.kept_run(overrides) == outcome
    assert len(runs) == 3, "the quickstart's own settings decide, too"


def test_the_picture_has_a_panel_for_each_plan(tmp_path: Path) -> None:
    run = Run({2: 50.0, 4: 60.5}, {1: 0.5, 2: 1.0, 4: 2.0}, 0.25)
    curves = [
        {"plan": plan, "compression": compression, "runs": [run, run]}
        for plan in ("full graph", "optimised")
        for compression in ("none", "int8")
    ]

    compressed_gossip.plot(curves, str(tmp_path / "curves.png"))

    assert (tmp_path / "curves.png").read_bytes()[:4] == b"\x89PNG"
