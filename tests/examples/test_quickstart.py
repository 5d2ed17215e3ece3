"""The quickstart's three strategies, with its own ClientApp, in this process."""

import json
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, RecordDict
from flwr.serverapp.strategy import Result
from local_grid import LocalGrid
from quickstart.client_app import app
from quickstart.server_app import UnweightedFedAvg, make_plan, make_strategy, model_bytes, round_energy
from quickstart.server_app import app as server_app
from quickstart.task import Net, elastic, methods

from examples.simulation import LocalFlower
from flower_edge.clients import Elastic
from flower_edge.gossip import Layout, complete, full_graph_plan, load_graph
from flower_edge.strategies import HostedGossip
from flower_edge.training import GradientFilter, Time, explain, prepare_

PYPROJECT = Path(__file__).parents[2] / "examples" / "quickstart" / "pyproject.toml"
CONFIG: dict[str, Any] = tomllib.loads(PYPROJECT.read_text())["tool"]["flwr"]["app"]["config"]
NODES = 4


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Layers this small only lose time between threads, most of all beside other tests."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def train(rounds: int = 1, **overrides: Any) -> Result:
    config = CONFIG | {"graph": f"complete:{NODES}", "evaluate-every": 1} | overrides
    torch.manual_seed(config["seed"])
    return make_strategy(config).start(
        LocalGrid(app, list(range(1, NODES + 1)), config),
        ArrayRecord(Net().state_dict()),
        rounds,
        train_config=ConfigRecord({"lr": 0.1}),
    )


@pytest.mark.parametrize("strategy", ["gossip", "gossip-full", "fedavg"])
def test_it_learns_and_evaluates_every_other_round(strategy: str) -> None:
    result = train(rounds=6, strategy=strategy, **{"evaluate-every": 2})

    accuracy = {r: record["accuracy"] for r, record in result.evaluate_metrics_clientapp.items()}
    assert list(accuracy) == [2, 4, 6]
    assert accuracy[6] > 0.6


def test_fedavg_weighs_nodes_as_gossip_does() -> None:
    """On the complete graph, Metropolis weights are all 1/n: every node's model is the mean of all."""
    # Dirichlet(0.3) gives the nodes parts of very different sizes, so that weights would show.
    fedavg = train(strategy="fedavg").arrays.to_numpy_ndarrays()
    gossip = train(strategy="gossip-full").arrays.to_numpy_ndarrays()

    for ours, theirs in zip(gossip, fedavg, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_the_run_config_chooses_the_strategy() -> None:
    assert isinstance(make_strategy(CONFIG | {"strategy": "fedavg"}), UnweightedFedAvg)
    assert isinstance(make_strategy(CONFIG | {"strategy": "gossip-full"}), HostedGossip)
    with pytest.raises(ValueError, match="strategy is 'gosip'; expected gossip, gossip-full or fedavg"):
        make_strategy(CONFIG | {"strategy": "gosip"})


def test_a_plan_can_come_from_a_file(tmp_path: Path) -> None:
    plan = full_graph_plan(load_graph("ring:5"), round_energy())
    plan.to_json(tmp_path / "plan.json")
    config = CONFIG | {"strategy": "gossip", "graph": "ring:5", "plan": str(tmp_path / "plan.json")}

    assert make_plan(config) == plan
    with pytest.raises(ValueError, match="the plan is for 5 nodes, the graph has 6"):
        make_plan(config | {"graph": "ring:6"})


def test_a_topology_can_come_from_a_file(tmp_path: Path) -> None:
    from flower_edge.gossip import save_graph

    save_graph(complete(5), tmp_path / "graph.json")

    plan = make_plan(CONFIG | {"strategy": "gossip-full", "graph": str(tmp_path / "graph.json")})

    assert len(plan.phase(1).links) == 10


def test_the_model_is_counted_as_it_travels() -> None:
    result = train(strategy="gossip-full")

    sent_and_received = 2 * (NODES - 1) * model_bytes()
    assert result.train_metrics_clientapp[1]["busiest-node-bytes"] == sent_and_received


def test_filtered_gradients_learn_and_say_what_a_step_costs() -> None:
    result = train(rounds=8, method="gradient-filter", strategy="gossip-full", **{"evaluate-every": 8})

    assert result.evaluate_metrics_clientapp[8]["accuracy"] > 0.6
    for record in result.train_metrics_clientapp.values():
        assert record["step_time"] > 0
        assert 0 < record["backward_share"] < 1
        assert record["saved_bytes"] > 0


def test_the_method_trains_other_models() -> None:
    models = [train(strategy="gossip-full", method=method).arrays for method in ("none", "gradient-filter")]
    exact, filtered = (arrays.to_torch_state_dict() for arrays in models)

    assert list(filtered) == list(exact)
    assert not torch.equal(filtered["layers.3.weight"], exact["layers.3.weight"])


def test_the_run_config_chooses_the_method() -> None:
    def chosen(name: str) -> list[object]:
        return list(methods(Context(1, 1, {}, RecordDict(), CONFIG | {"method": name})))

    assert chosen("none") == []
    (method,) = chosen("gradient-filter")
    assert isinstance(method, GradientFilter)
    assert [(layer.name, layer.path) for layer in explain(prepare_(Net(), method)).layers] == [
        ("layers.3", "filtered")
    ]
    (method,) = chosen("sign-feedback")
    assert [(layer.name, layer.path) for layer in explain(prepare_(Net(), method)).layers] == [
        ("layers.3", "sparse")
    ]


def test_pruned_gradients_are_counted() -> None:
    result = train(rounds=2, method="sign-feedback", strategy="gossip-full", **{"evaluate-every": 2})

    for record in result.train_metrics_clientapp.values():
        # It has hardly risen yet.
        assert record["gradient_sparsity"] == pytest.approx(0.5, abs=0.05)
        assert record["skipped_share"] == pytest.approx(record["gradient_sparsity"])
        assert 0 < record["gradient_angle"] < 90


def test_elastic_nodes_learn_and_return_what_they_trained() -> None:
    result = train(rounds=6, strategy="gossip-full", **{"elastic-budget": 0.8, "evaluate-every": 6})

    assert result.evaluate_metrics_clientapp[6]["accuracy"] > 0.6
    for record in result.train_metrics_clientapp.values():
        assert record["nodes-failed"] == 0
        assert 0 < record["elastic-share"] <= 0.8
        assert record["upload_share"] < 1


def test_the_run_config_sets_the_budget() -> None:
    def chosen(share: float) -> object:
        return elastic(Context(1, 1, {}, RecordDict(), CONFIG | {"elastic-budget": share}))

    assert chosen(0.0) is None
    assert chosen(0.5) == Elastic(Time(0.5))
    with pytest.raises(ValueError, match=r"the share of Time is 1\.5"):
        chosen(1.5)


def test_the_run_config_chooses_the_compression() -> None:
    for name, fewer in (("int8", 3.8), ("int4", 7), ("sign", 20), ("top-k", 15)):
        config = CONFIG | {"graph": "ring:5", "strategy": "gossip-full", "compression": name}
        strategy = make_strategy(config)
        assert strategy.compressor is not None
        layout = Layout.of(Net().state_dict())
        vector, _ = layout.flatten(Net().state_dict())
        assert len(strategy.compressor.codec(layout).encode(vector)) * fewer < layout.nbytes
    assert make_strategy(CONFIG | {"graph": "ring:5", "strategy": "gossip-full"}).compressor is None
    with pytest.raises(ValueError, match="compression is 'zip'; expected one of none, int8"):
        make_strategy(config | {"compression": "zip"})
    with pytest.raises(ValueError, match="compression is 'int8', which is for gossip"):
        make_strategy(config | {"compression": "int8", "strategy": "fedavg"})


def test_an_unknown_method_fails_on_the_server_before_any_node_is_asked() -> None:
    config = CONFIG | {"graph": f"complete:{NODES}", "method": "filter"}
    grid = LocalGrid(app, list(range(1, NODES + 1)), config)

    with pytest.raises(ValueError, match="method is 'filter'; expected one of none, gradient-filter"):
        server_app(grid, Context(1, 0, {}, RecordDict(), config))

    assert grid.sent == []


def test_flower_itself_runs_it(tmp_path: Path) -> None:
    results = tmp_path / "results.json"
    config = {"graph": "complete:2", "strategy": "gossip-full", "num-server-rounds": 2, "seed": 1}

    with LocalFlower() as flower:
        flower.run(
            PYPROJECT.parent, 2, config | {"method": "gradient-filter", "results": str(results)}, timeout=240
        )

    rounds = json.loads(results.read_text())["train"]
    assert list(rounds) == ["1", "2"]
    for metrics in rounds.values():
        assert metrics["nodes-failed"] == 0
        assert metrics["step_time"] > 0
        assert 0 < metrics["backward_share"] < 1
        assert metrics["saved_bytes"] > 0
    assert rounds["2"]["train_loss"] < rounds["1"]["train_loss"]
