"""A real SuperLink and four real SuperNodes, with TLS and authentication, and models that pass them by."""

import contextlib
import importlib
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord
from local_grid import LocalGrid

from examples.deployment import Deployment
from examples.serverless.__main__ import describe
from examples.simulation import SimulationError
from flower_edge.clients.gossip_files import NodeFiles
from flower_edge.gossip import full_graph_plan, load_graph
from flower_edge.peer import State
from flower_edge.strategies import HostedGossip

APP = Path(__file__).parents[2] / "examples" / "serverless"
NODES, ROUNDS, SEED, LR = 4, 10, 3, 0.5


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, ModuleType]]:
    monkeypatch.syspath_prepend(str(APP))
    yield {name: importlib.import_module(f"serverless.{name}") for name in ("client_app", "task")}
    for module in [name for name in sys.modules if name.partition(".")[0] == "serverless"]:
        del sys.modules[module]


def hosted_models(app: dict[str, ModuleType]) -> np.ndarray:
    """The same nodes, seeds and plan, with the models hosted in this process."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        torch.manual_seed(SEED)
        initial = ArrayRecord(app["task"].Net().state_dict())
        strategy = HostedGossip(
            full_graph_plan(load_graph(f"ring:{NODES}")), bind_by="partition-id", fraction_evaluate=0.0
        )
        grid = LocalGrid(app["client_app"].app, list(range(NODES)), {"seed": SEED, "local-epochs": 1})
        strategy.start(grid, initial, ROUNDS, train_config=ConfigRecord({"lr": LR}))
    finally:
        torch.set_num_threads(before)
    return strategy._fleet.models


def config(rounds: int, **more: object) -> dict[str, object]:
    """All rounds in one session, and no evaluation: each message starts a process for each node."""
    fixed = {"fraction-evaluate": 0.0, "learning-rate": LR, "seed": SEED}
    return {"num-server-rounds": rounds, "rounds-per-session": rounds, **fixed, **more}


def states(flower: Deployment) -> dict[int, State]:
    """What each board has on its disk."""
    return {
        node: state
        for folder in sorted(flower.folder.glob("boards/partition-*/*"))
        for node in range(NODES)
        if (state := NodeFiles(folder, folder.name).kept(node)) is not None
    }


def test_boards_do_what_the_host_would_have_done(app: dict[str, ModuleType], tmp_path: Path) -> None:
    expected = hosted_models(app)
    model, results = tmp_path / "model.pt", tmp_path / "results.json"

    with Deployment(NODES) as flower:
        log = flower.deploy(
            APP, config(ROUNDS, export=NODES, model=str(model), results=str(results)), timeout=540.0
        )
        kept = states(flower)
        processes = flower.processes()

    assert "mutual TLS 1.3, pinned certificates" in "\n".join(log)
    assert sorted(kept) == list(range(NODES))
    for node, state in kept.items():
        np.testing.assert_allclose(state.model, expected[node], rtol=1e-5, atol=1e-5)
    arrays = torch.load(model, weights_only=True)
    average = np.concatenate([array.numpy().ravel() for array in arrays.values()])
    np.testing.assert_allclose(average, expected.mean(0), rtol=1e-5, atol=1e-5)
    metrics = json.loads(results.read_text())
    assert f"{ROUNDS} rounds in 7 s" in describe(metrics, 7.0)
    payload = 4 * expected.shape[1] * 2 * 2 * ROUNDS
    last = metrics["train_metrics_clientapp"][str(ROUNDS)]
    assert payload < last["busiest-node-bytes"] < 1.5 * payload, "small models: handshakes weigh"
    assert processes
    assert not flower.processes()


@pytest.mark.slow
def test_a_session_does_not_need_the_superlink(app: dict[str, ModuleType], tmp_path: Path) -> None:
    """It is killed in mid-session; when it is back, the boards report the rounds that they did without it."""
    rounds, more, results = 200, 20, tmp_path / "results.json"
    resumed = {"resume": str(tmp_path / "run.json"), "results": str(results)}
    with Deployment(NODES) as flower:
        running = threading.Thread(target=run_in_vain, args=(flower, config(rounds, **resumed)))
        running.start()
        wait_until(lambda: len(found := states(flower)) == NODES and min(s.round for s in found.values()) > 5)
        flower.superlink_process.kill()
        flower.superlink_process.wait()
        at = max(state.round for state in states(flower).values())

        wait_until(lambda: all(state.round == rounds for state in states(flower).values()))

        assert at < rounds
        running.join(60.0)
        assert not results.exists()
        flower.start_superlink()
        sessions = {"rounds-per-session": rounds}
        flower.deploy(APP, config(rounds + more, **resumed, **sessions), timeout=540.0)

    metrics = json.loads(results.read_text())["train_metrics_clientapp"]
    assert list(map(int, metrics)) == list(range(1, rounds + more + 1))
    assert all(found["nodes-failed"] == 0 for found in metrics.values())
    assert all(found["train_loss"] > 0 for found in metrics.values())


def run_in_vain(flower: Deployment, run_config: dict[str, object]) -> None:
    with contextlib.suppress(SimulationError):
        flower.deploy(APP, run_config)


def wait_until(condition: Callable[[], bool], seconds: float = 540.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
