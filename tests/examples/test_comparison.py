"""The demo's figures, worked out by hand from small made-up runs."""

from dataclasses import replace

import pytest

from examples.comparison import COLUMNS, Comparison, Outcome
from flower_edge.gossip import UnicastEnergy, full_graph_plan, load_graph, ring

ENERGY = UnicastEnergy(compute=1.0, send=2.0, receive=1.0)


def gossip_metrics(accuracies: list[float], energy: float) -> dict[str, dict[str, dict[str, float]]]:
    """Two rounds from one evaluation to the next, so that rounds and evaluations are told apart."""
    rounds = range(1, 2 * len(accuracies) + 1)
    return {
        "train": {
            str(r): {
                "busiest-node-energy-wh": energy * r,
                "busiest-node-bytes": 100 * r,
                "consensus-distance": 1 / r,
            }
            for r in rounds
        },
        "evaluate": {
            str(2 * i): {"accuracy": a, "accuracy-min": a - 0.1, "accuracy-max": a + 0.1}
            for i, a in enumerate(accuracies, 1)
        },
    }


@pytest.fixture
def comparison() -> Comparison:
    """On a star of five nodes, where the aggregator sits in the middle; the "optimised plan" is a ring's."""
    import networkx as nx

    graph = load_graph(nx.star_graph(4))
    climbing = [0.1 * i for i in range(10)]
    fedavg = {"evaluate": {str(r): {"accuracy": a} for r, a in enumerate([0.5, 0.85, 0.9], 1)}, "train": {}}
    return Comparison(
        graph=graph,
        full_plan=full_graph_plan(graph, ENERGY),
        plan=full_graph_plan(ring(5), ENERGY),
        fedavg=Outcome.of_fedavg("FedAvg", fedavg, graph, ENERGY, model_bytes=1000),
        baseline=Outcome.of_gossip("full", gossip_metrics([*climbing, *[0.8] * 5], energy=10.0)),
        optimised=Outcome.of_gossip("plan", gossip_metrics([*climbing, *[0.7] * 5], energy=4.0)),
        task="made up",
    )


def test_the_target_is_half_a_point_below_the_baseline(comparison: Comparison) -> None:
    assert comparison.target == pytest.approx(0.795)


def test_energy_is_compared_where_both_reach_the_target(comparison: Comparison) -> None:
    # Both climb through 0.8 at the ninth evaluation, round 18: 180 Wh and 72 Wh.
    assert comparison.saving(comparison.optimised) == pytest.approx(1 - 72 / 180)
    assert comparison.saving(comparison.baseline) == 0.0
    assert "60% less energy" in comparison.verdict
    assert "at least the 60% aimed at" in comparison.verdict


def test_rounds_are_mapped_as_numbers_not_as_text(comparison: Comparison) -> None:
    # As text, "10" comes before "2".
    assert comparison.baseline.rounds == list(range(2, 32, 2))
    assert comparison.baseline.energy[8] == 180.0


def test_fedavg_pays_at_the_aggregator(comparison: Comparison) -> None:
    # The middle receives from and sends to four others: 4 · (2 + 1) Wh + 1 Wh of training, 8 models.
    assert list(comparison.fedavg.energy) == pytest.approx([13.0, 26.0, 39.0])
    assert list(comparison.fedavg.traffic) == pytest.approx([8000, 16000, 24000])
    assert comparison.saving(comparison.fedavg) == pytest.approx(1 - 26 / 180)


def test_a_smaller_saving_is_not_called_enough(comparison: Comparison) -> None:
    wasteful = Outcome.of_gossip("plan", gossip_metrics([0.9] * 5, energy=45.0))

    verdict = replace(comparison, optimised=wasteful).verdict

    assert "50% less energy" in verdict
    assert "less than the 60% aimed at" in verdict


def test_a_method_that_never_gets_there_saves_nothing(comparison: Comparison) -> None:
    hopeless = Outcome.of_gossip("plan", gossip_metrics([0.5] * 5, energy=0.1))
    failed = replace(comparison, optimised=hopeless)

    assert failed.saving(hopeless) is None
    assert "not reached" in failed.rows[2]
    assert "did not reach 79.5%" in failed.verdict
    assert "in 10 rounds" in failed.verdict


def test_the_report_shows_what_the_table_shows(comparison: Comparison) -> None:
    report = comparison.report()

    assert report.columns == COLUMNS
    assert report.rows == comparison.rows
    assert report.verdict == comparison.verdict
    assert len(report.before.links) == 4
    assert len(report.after.links) == 5
    assert [method.name for method in report.methods] == ["FedAvg", "full", "plan"]
    for word in ("measured", "modelled", "counted"):
        assert any(word in note for note in report.notes)
