"""Push-sum at the host: directed plans with the strategy that runs undirected ones."""

from pathlib import Path

import numpy as np
import pytest
from flwr.app import ArrayRecord
from flwr.clientapp import ClientApp
from local_grid import LocalGrid
from records import to_numpy

from flower_edge.gossip import DPSGD, DirectedPlan, Int8, PushSum
from flower_edge.strategies import HostedGossip, ServerlessGossip

PLAN = DirectedPlan(6, [[0, 1], [1, 2], [2, 3], [3, 4], [4, 5], [5, 0], [0, 3], [3, 0]])
NODE_IDS = [907, 12, 500, 43, 88, 311]


def run(app: ClientApp, initial: ArrayRecord, rounds: int, resume: Path | None = None) -> HostedGossip:
    strategy = HostedGossip(PLAN, resume=resume)
    strategy.result = strategy.start(LocalGrid(app, NODE_IDS), initial, rounds)
    return strategy


def test_all_that_is_learned_reaches_all(toy_app: ClientApp, initial: ArrayRecord) -> None:
    strategy = run(toy_app, initial, 40)

    masses = [mixer.state() for mixer in strategy._fleet.mixers]
    weight = sum(float(mass["weight"][0]) for mass in masses)
    total = sum(mass["mass"] for mass in masses)
    expected = to_numpy(initial)["weight"].astype(np.float64).reshape(-1) + 40 * np.mean(np.arange(1, 7))
    assert weight == pytest.approx(6)
    np.testing.assert_allclose(total[: expected.size] / 6, expected, rtol=1e-6)
    metrics = strategy.result.train_metrics_clientapp[40]
    assert metrics["sent-bytes-max"] == 2 * PushSum.largest_message(expected.size)


def test_a_run_resumes_as_if_it_had_not_stopped(
    toy_app: ClientApp, initial: ArrayRecord, tmp_path: Path
) -> None:
    whole = run(toy_app, initial, 6)
    run(toy_app, initial, 3, tmp_path / "run")
    resumed = run(toy_app, initial, 6, tmp_path / "run")

    np.testing.assert_array_equal(whole._fleet.models, resumed._fleet.models)


def test_what_does_not_go_together_is_refused() -> None:
    for arguments in ({"mixer": DPSGD}, {"compressor": Int8()}, {"mix_untrained": False}):
        with pytest.raises(ValueError, match="the plan is directed, and only PushSum mixes"):
            HostedGossip(PLAN, **arguments)
    with pytest.raises(ValueError, match="received a DirectedPlan, expected a GossipPlan"):
        ServerlessGossip(PLAN)
