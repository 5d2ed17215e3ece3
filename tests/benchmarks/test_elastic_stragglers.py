"""The simulated gossip of slow and fast boards: who trains what, how long it takes, and who mixes."""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from benchmarks import elastic_stragglers as benchmark
from benchmarks.cifar import Images
from benchmarks.elastic_stragglers import (
    WAITED_FOR,
    WAYS,
    Gossip,
    Outcome,
    finish,
    found,
    kept_at,
    plan,
    plot,
    row,
    times_faster,
)
from benchmarks.stragglers import NODES, Board, Race, Way
from flower_edge.training import Profile, profile

RACE = Race(steps=4, batch=8, rounds=2, every=2, looks=2, images=400, test_images=80, rate=0.1, warm_up=2)
ELASTIC = Way("elastic")


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def images(n: int, seed: int) -> Images:
    rng = np.random.default_rng(seed)
    return Images(
        torch.from_numpy(rng.integers(0, 256, (n, 3, 8, 8), np.uint8)),
        torch.from_numpy(rng.integers(0, 10, n)),
    )


def network() -> nn.Module:
    torch.manual_seed(5)
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 8, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)),
    )


@pytest.fixture(scope="module")
def its_profile() -> Profile:
    torch.set_num_threads(1)
    model = network().train()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    batch = torch.randn(8, 3, 8, 8), torch.randint(10, (8,))
    return profile(model, batch, cross_entropy, optimizer=optimizer, repeats=3)


class Clock:
    """Each piece of work takes what the profile predicts for it, times `factor`."""

    def __init__(self) -> None:
        self.now, self.step, self.asked = 0.0, 0.0, 0

    def __call__(self) -> float:
        self.asked += 1
        if self.asked % 2 == 0:
            self.now += self.step
        return self.now


def board(way: Way, its_profile: Profile, slowdown: float, factor: float = 1.0) -> tuple[Board, Clock]:
    clock = Clock()
    made = Board(RACE, way, network(), its_profile, images(40, 2), slowdown, 0, clock)
    clock.step = factor * RACE.round_seconds(its_profile) / RACE.steps
    return made, clock


def test_who_is_waited_for_trains_everything_however_long_it_takes(its_profile: Profile) -> None:
    slow, _ = board(WAITED_FOR, its_profile, slowdown=4.0)

    seconds = slow.round(0, {})

    assert seconds == pytest.approx(4 * RACE.round_seconds(its_profile))
    assert slow.spent.steps == RACE.steps
    assert slow.spent.longest == pytest.approx(4 / RACE.deadline)
    assert set(slow.trained) == set(its_profile.graph.tensor_names)


def test_who_is_late_does_not_train(its_profile: Profile) -> None:
    slow, _ = board(Way("dropped"), its_profile, slowdown=1.5)
    fast, _ = board(Way("dropped"), its_profile, slowdown=1.05)

    assert (slow.round(0, {}), slow.spent.steps, slow.trained) == (0.0, 0, ())
    assert fast.round(0, {}) == pytest.approx(1.05 * RACE.round_seconds(its_profile))


@pytest.mark.parametrize("factor", [1.0, 1.7])
def test_fewer_steps_keep_the_deadline_on_a_day_when_everything_is_slower(
    factor: float, its_profile: Profile
) -> None:
    """Once a board has learnt from its clock how much slower; one step is taken in any case."""
    slow, _ = board(Way("fewer steps"), its_profile, slowdown=2.0, factor=factor)

    for number in range(10):
        slow.round(number, {})
    taken, slow.spent.steps, slow.spent.longest = slow.spent.steps, 0, 0.0
    slow.round(10, {})

    a_step = 2.0 * factor / RACE.steps
    assert slow.spent.steps == max(1, math.floor(RACE.deadline / a_step))
    assert slow.spent.longest == pytest.approx(slow.spent.steps * a_step / RACE.deadline)
    assert taken >= 10


def test_an_elastic_board_chooses_as_much_as_it_has_time_for(its_profile: Profile) -> None:
    graph = its_profile.graph
    fast, _ = board(ELASTIC, its_profile, slowdown=1.0)
    slow, _ = board(ELASTIC, its_profile, slowdown=2.0)
    full = graph.full_cost.seconds

    for each in (fast, slow):
        each.round(0, {})

    # All that has a positive importance: at the start, that is all.
    assert graph.cost(fast.trained).seconds == pytest.approx(full)
    allowed = RACE.deadline * RACE.round_seconds(its_profile) / RACE.steps / 2 - graph.fixed_seconds
    assert 0 < graph.cost(slow.trained).seconds <= max(allowed, graph.cost(("6.weight", "6.bias")).seconds)
    assert slow.importance.keys() == set(graph.tensor_names)


def test_the_least_share_is_trained_in_fewer_steps(its_profile: Profile) -> None:
    slow, _ = board(Way("elastic", least=1.0), its_profile, slowdown=4.0)

    slow.round(0, {})

    assert set(slow.trained) == set(its_profile.graph.tensor_names)
    assert slow.spent.steps < RACE.steps


def test_the_window_moves_with_every_choice(its_profile: Profile) -> None:
    from flower_edge.training import SlidingWindow

    window = SlidingWindow(2)
    slow, _ = board(Way("elastic", window=2), its_profile, slowdown=4.0)

    seen = []
    for number in range(2 * RACE.every):
        slow.round(number, {})
        seen.append(frozenset(slow.trained))

    assert seen[0] == seen[1]
    assert seen[2] == seen[3]
    near, far = window.stretches(its_profile.graph)
    assert not seen[0].isdisjoint(near)
    assert not seen[2].isdisjoint(far), "tensors further from the output have their turn"
    assert slow.spent.steps < 4 * RACE.steps


def test_what_is_important_to_all_counts(its_profile: Profile) -> None:
    one = Way("elastic", of_all=1.0)
    head = ("6.weight", "6.bias")
    of_all = {name: float(name in head) for name in its_profile.graph.tensor_names}
    fast, _ = board(one, its_profile, slowdown=1.0)

    fast.round(0, of_all)

    assert set(fast.trained) == set(head)


@pytest.mark.parametrize("way", [ELASTIC, Way("elastic", mixed_by="trainers")])
def test_mixing_keeps_the_mean_of_every_tensor(way: Way, its_profile: Profile) -> None:
    gossip = Gossip(RACE, way, network(), its_profile, images(400, 0), images(80, 1), seed=0)
    for node, each in enumerate(gossip.boards):
        for parameter in each.model.parameters():
            torch.nn.init.normal_(parameter)
        each.trained = its_profile.graph.tensor_names[: node % 4]

    def weights() -> dict[str, torch.Tensor]:
        return {
            name: torch.stack([dict(each.model.named_parameters())[name].detach() for each in gossip.boards])
            for name in its_profile.graph.tensor_names
        }

    before = {name: value.clone() for name, value in weights().items()}
    gossip._mix()
    after = weights()

    for number, name in enumerate(its_profile.graph.tensor_names):
        torch.testing.assert_close(after[name].mean(0), before[name].mean(0))
        stayed = [torch.equal(after[name][node], before[name][node]) for node in range(NODES)]
        if way.mixed_by == "trainers":
            assert all(stayed[node] for node in range(NODES) if number >= node % 4)
        else:
            assert not any(stayed)


@pytest.mark.parametrize(("way", "rounds"), [(WAITED_FOR, 2), (Way("dropped"), 8), (Way("fewer steps"), 8)])
def test_a_run_ends_with_its_time(way: Way, rounds: int, its_profile: Profile) -> None:
    """It is that of two rounds in which all wait, and of 7.3 deadlines."""
    clock = Clock()
    clock.step = 1.001 * RACE.round_seconds(its_profile) / RACE.steps
    gossip = Gossip(RACE, way, network(), its_profile, images(400, 0), images(80, 1), 0, clock)

    outcome = gossip.run()

    end = RACE.rounds * RACE.slowest
    assert end * (1 - 1e-9) <= outcome.curve[-1][0] <= end + RACE.slowest
    assert all(time < end for time, _ in outcome.curve[:-1])
    assert len(outcome.curve) == RACE.looks
    assert outcome.rounds == rounds
    assert np.array(outcome.accuracy).shape == (NODES, 10)
    assert len(outcome.shares) == len(outcome.steps) == NODES
    assert outcome.exchanged == 1.0


def test_a_run_is_done_once(its_profile: Profile, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str] = []
    monkeypatch.setattr(benchmark, "pretrained", lambda name: loaded.append(name) or network())
    monkeypatch.setattr(benchmark, "cifar10", lambda folder: (images(400, 0), images(80, 1)))

    for _ in range(2):
        finish(ELASTIC, RACE, 0, its_profile, Path())

    assert len(loaded) == 1
    (outcome,) = found(ELASTIC, RACE, 1)
    assert outcome.rounds >= 1
    assert all(0 <= accuracy <= 1 for _, accuracy in outcome.curve)
    names = {kept_at(way, RACE, seed) for way in WAYS for seed in (0, 1)}
    assert len(names) == 2 * len(WAYS)


def made(*curve: tuple[float, float], accuracy: float = 0.5) -> Outcome:
    labels = [[accuracy + 0.01 * node] * 9 + [0.1] for node in range(NODES)]
    return Outcome(list(curve), labels, 10, 0.98, 0.01, [1.0] * 8, [100] * 8, 1.0)


def test_time_to_an_accuracy_lies_between_two_looks() -> None:
    outcome = made((10.0, 0.4), (20.0, 0.6), (30.0, 0.5))

    assert outcome.time_to(0.2) == pytest.approx(5)
    assert outcome.time_to(0.5) == pytest.approx(15)
    assert outcome.time_to(0.6) == pytest.approx(20)
    assert outcome.time_to(0.7) == math.inf


def test_a_row_says_how_much_sooner_and_who_has_least() -> None:
    waited_for = [made((10.0, 0.1), (20.0, 0.2)), made((10.0, 0.3), (20.0, 0.4))]
    ours = [made((5.0, 0.2), (20.0, 0.2)), made((10.0, 0.2), (20.0, 0.3))]

    assert times_faster(waited_for, waited_for) == 1
    assert times_faster(ours[:1], waited_for[:1]) == pytest.approx(4)
    assert times_faster(ours[1:], waited_for[1:]) == 0, "never reached"
    columns = row(ELASTIC, ours, waited_for)
    assert columns["worst_node"] == pytest.approx(46)
    assert columns["worst_label"] == pytest.approx(10)
    assert columns["accuracy"] == pytest.approx(0.9 * 53.5 + 0.1 * 10)


def test_slowdowns_reach_from_one_to_the_slowest() -> None:
    slowdowns = Race().slowdowns(0)

    assert (len(slowdowns), min(slowdowns), max(slowdowns)) == (NODES, 1.0, 4.0)
    assert slowdowns != Race().slowdowns(1)
    assert sorted(slowdowns) == sorted(Race().slowdowns(1))
    assert plan().n == NODES


def test_ways_have_names_of_their_own(tmp_path: Path) -> None:
    curves = {way: [made((10.0, 0.1), (20.0, 0.2))] for way in WAYS}

    plot(curves, str(tmp_path / "curves.svg"))

    assert len({str(way) for way in WAYS}) == len(WAYS)
    assert (tmp_path / "curves.svg").read_text().count("<svg") == 1
