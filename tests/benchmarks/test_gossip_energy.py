"""What benchmarks.gossip_energy claims of its findings, and which cases it takes up."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from benchmarks.gossip_energy import (
    AUTO,
    BROADCAST,
    COMPLETE,
    FULL,
    MATCHA,
    MESH,
    METHODS,
    RANDOM,
    SOFTMAX,
    UNICAST,
    Case,
    Finding,
    Found,
    beyond_spread,
    cases,
    claim,
    quartiles,
    row,
)
from benchmarks.harness import Benchmark
from benchmarks.rounds_needed import Need
from benchmarks.topologies import VARIABLE, real_graphs, topologies_option
from flower_edge.gossip import Candidate

STUTTGART, OTHER = "freifunk-stuttgart-wifi-29-c1", "freifunk-elsewhere"


def finding(rounds: float, energy: float, seeds: tuple[float, ...] | None = None) -> Finding:
    model = Candidate("any", 1, 2.0, 0.5, 1.0, 2.0, energy=energy, rounds=30.0)
    return Finding(model, Need(rounds, seeds or (rounds,) * 5, rate=4.0, margin=2), "75% send")


def found(graph: str, *, auto: float = 0.1, matcha: float = 0.3, broadcast: float = 0.9) -> Found:
    """Findings in which the full graph spends 1 and others what is given."""
    spent = {FULL: 1.0, AUTO: auto, MATCHA: matcha, RANDOM: 0.2}
    unicast = {Case(graph, SOFTMAX, UNICAST, m): finding(100, e / 100) for m, e in spent.items()}
    spent = {FULL: 1.0, AUTO: broadcast}
    return unicast | {Case(graph, SOFTMAX, BROADCAST, m): finding(10, e / 10) for m, e in spent.items()}


@pytest.mark.parametrize(
    ("findings", "broken"),
    [
        (found(MESH), ""),
        (found(MESH, auto=0.16), "over the full graph"),
        (found(MESH, auto=0.14, matcha=0.23), "over MATCHA"),
        (found(STUTTGART, auto=0.16), "over the full graph"),
        (found(OTHER, auto=0.16), ""),
        (found(OTHER, auto=0.41), "over the full graph"),
        (found(COMPLETE, auto=0.21), "random matchings"),
        (found(COMPLETE, broadcast=1.01), "broadcast"),
    ],
)
def test_a_claim_breaks_where_its_bound_is_missed(findings: Found, broken: str) -> None:
    bench = Benchmark("example", quick=False)

    claim(bench, findings)

    failed = [claim["text"] for claim in bench.claims if not claim["holds"]]
    assert any(broken in text for text in failed) if broken else not failed


def test_the_spread_over_seeds_excuses_a_small_loss() -> None:
    calm, noisy = finding(105, 1, (104, 105, 106)), finding(105, 1, (60, 105, 150))
    other = finding(100, 1, (100, 100, 100))

    assert beyond_spread(calm, other) == pytest.approx(1.05 - 0.005)
    assert beyond_spread(noisy, other) < 1
    assert beyond_spread(finding(math.inf, 1, (90, 95, math.inf)), other) == math.inf


def test_a_row_says_what_is_saved_and_what_was_not_reached() -> None:
    case = Case(MESH, SOFTMAX, UNICAST, AUTO)
    full = finding(100, 2e-3, (80, 100, 100, 120, 130))

    reached = row(case, finding(200, 5e-4, (160, 200, 200, 260, 240)), full)
    never = row(case, finding(math.inf, 5e-4, (math.inf,) * 5), full)

    assert json.loads(json.dumps([reached, never]))[0] == reached
    assert reached["saved_percent"] == pytest.approx(50)
    assert reached["rounds_over_full"] == pytest.approx(2)
    assert reached["mwh_to_target"] == pytest.approx(100)
    assert reached["rounds_of_seeds"] == "200 to 240"
    assert {never[name] for name in ("rounds", "saved_percent", "rounds_of_seeds")} >= {"not reached"}


def test_quartiles_are_values_that_occur() -> None:
    assert quartiles(np.array([1.0, 2.0, 3.0, 4.0, math.inf])) == "2 to 4"
    assert quartiles(np.array([1.0, 2.0, math.inf, math.inf, math.inf])) == "2 to not reached"


def test_exact_averages_are_tried_where_all_nodes_are_linked() -> None:
    taken = cases({STUTTGART: "a path"})

    assert {c.graph for c in taken if c.method == "finite-time"} == {COMPLETE}
    assert {c.method for c in taken if c.graph == STUTTGART} == set(METHODS) - {"finite-time"}
    assert len(set(taken)) == len(taken)


def test_real_graphs_come_from_the_folder_that_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "freifunk-here.json").write_text("{}")
    (tmp_path / "other.json").write_text("{}")
    monkeypatch.delenv(VARIABLE, raising=False)

    assert topologies_option().parse_args(["--topologies", str(tmp_path)]).topologies == tmp_path
    assert real_graphs(tmp_path, "freifunk") == {"freifunk-here": str(tmp_path / "freifunk-here.json")}

    assert topologies_option().parse_args([]).topologies is None
    assert real_graphs(None) == {}
    assert VARIABLE in capsys.readouterr().err

    monkeypatch.setenv(VARIABLE, str(tmp_path / "nowhere"))
    with pytest.raises(SystemExit):
        topologies_option().parse_args([])
    assert "nowhere" in capsys.readouterr().err
