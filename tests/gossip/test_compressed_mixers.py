"""Compressed gossip: exact consensus, the mean of all models, and what happens when links fail."""

from collections.abc import Callable, Iterable
from functools import partial
from itertools import pairwise

import networkx as nx
import numpy as np
import pytest
from graphs import random_connected_graph
from hypothesis import given, settings
from hypothesis import strategies as st

from flower_edge.gossip import (
    DPSGD,
    BFloat16,
    ChocoCopies,
    ChocoSGD,
    Codec,
    CodecError,
    CompressedMixer,
    Compressor,
    DeepSqueeze,
    Float32,
    GossipPlan,
    Int4,
    Int8,
    Layout,
    LinkChoco,
    NodeRows,
    PlainQuantised,
    SignNorm,
    TopK,
    UnicastEnergy,
    cyclic_matchings,
    full_graph_plan,
    link_array,
    load_graph,
    optimize,
)
from flower_edge.gossip.choco import PATIENCE

SIZE = 200
Fails = Callable[[int, int, int], bool]


def never(round: int, i: int, j: int) -> bool:
    return False


def torus() -> nx.Graph:
    return nx.convert_node_labels_to_integers(nx.grid_2d_graph(4, 4, periodic=True))


PLANS = {
    "ring": full_graph_plan(load_graph("ring:8")),
    "torus": full_graph_plan(load_graph(torus())),
    "optimised": optimize(load_graph("geometric:12:30"), UnicastEnergy(1.0, 1.0, 1.0), mode="fastest"),
}
MATCHINGS = GossipPlan(16, cyclic_matchings(link_array(torus()), 16))
COMPRESSORS = [Int8(), Int4(), Int4(rounding="stochastic"), SignNorm(), TopK(0.1), BFloat16()]


class Network:
    """All nodes of a plan, and the links between them: one message for each direction."""

    def __init__(
        self,
        plan: GossipPlan,
        make: Callable[..., CompressedMixer],
        compressor: Compressor,
        seed: int = 0,
        size: int = SIZE,
    ) -> None:
        self.plan = plan
        self.make = make
        self.codec = compressor.codec(size)
        self.mixers = [make(node, plan, self.codec) for node in range(plan.n)]
        self.models = np.random.default_rng(seed).standard_normal((plan.n, size)).astype(np.float32)
        self.round = 0
        self.bytes = 0

    def mix(self, fails: Fails = never, lost: Fails = never, live: Iterable[int] | None = None) -> None:
        """One round; `fails` says which links fail for both ends, `lost` which messages alone are lost."""
        live = set(range(self.plan.n) if live is None else live)
        t = self.round
        rows = [self.plan.row(node, t) for node in range(self.plan.n)]
        outgoing = [
            mixer.outgoing(self.models[i], [j for j in rows[i] if j != i] if i in live else [])
            for i, mixer in enumerate(self.mixers)
        ]
        for i, mixer in enumerate(self.mixers):
            received = {
                j: outgoing[j][i]
                for j in rows[i]
                if j != i and {i, j} <= live and not fails(t, min(i, j), max(i, j)) and not lost(t, j, i)
            }
            self.bytes += sum(map(len, received.values()))
            assert max(map(len, received.values()), default=0) <= mixer.largest_message
            if i in live:
                self.models[i] = mixer.mix(self.models[i], rows[i], received)
        self.round += 1

    @property
    def mean(self) -> np.ndarray:
        return self.models.mean(0, dtype=np.float64)

    @property
    def distance(self) -> float:
        return float(np.sqrt(np.square(self.models - self.mean).sum(1).mean()))


# ---------------------------------------------------------------- consensus


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("compressor", COMPRESSORS, ids=lambda compressor: compressor.name)
@pytest.mark.parametrize("algorithm", [ChocoSGD, LinkChoco])
def test_models_come_together_linearly_and_exactly(
    algorithm: type[CompressedMixer], compressor: Compressor, plan: str
) -> None:
    """In equal numbers of rounds the distance falls by equal factors, down to what fp32 can tell."""
    network = Network(PLANS[plan], algorithm, compressor)
    mean, first = network.mean, network.distance
    slow = isinstance(compressor, SignNorm)
    distances = [first]
    for _ in range(4):
        for _ in range(200 if slow else 100):
            network.mix()
        distances.append(network.distance)

    floor = 3e-6 * first
    for before, after in pairwise(distances):
        assert after <= max((0.9 if slow else 0.8) * before, floor)
    assert distances[-1] < (0.1 if slow else 2e-3) * first
    np.testing.assert_allclose(network.mean, mean, atol=1e-4)


@pytest.mark.parametrize("compressor", COMPRESSORS, ids=lambda compressor: compressor.name)
def test_links_that_change_need_a_reference_each(compressor: Compressor) -> None:
    network = Network(MATCHINGS, LinkChoco, compressor)
    mean, first = network.mean, network.distance
    for _ in range(900 if isinstance(compressor, SignNorm) else 300):
        network.mix()

    assert network.distance < 0.01 * first
    np.testing.assert_allclose(network.mean, mean, atol=2e-6)


@pytest.mark.parametrize("algorithm", [PlainQuantised, DeepSqueeze])
def test_algorithms_that_send_models_have_a_floor(algorithm: type[CompressedMixer]) -> None:
    """It is what the compressor loses of a whole model; CHOCO-SGD's falls below it by orders."""
    plan = PLANS["torus"]
    floors = {}
    for compressor in (Int8(), Int4()):
        network = Network(plan, algorithm, compressor)
        network.models += 1.0
        for _ in range(150):
            network.mix()
        floors[compressor.name] = network.distance
        lost = network.codec.decode(network.codec.encode(network.models[0])) - network.models[0]
        assert 0.05 * np.linalg.norm(lost) < network.distance < 3 * np.linalg.norm(lost)

    assert floors["int4/channel"] > 8 * floors["int8/channel"]
    choco = Network(plan, ChocoSGD, Int4())
    for _ in range(150):
        choco.mix()
    assert choco.distance < 1e-4 * floors["int8/channel"]


@pytest.mark.parametrize("algorithm", [PlainQuantised, ChocoSGD, LinkChoco, DeepSqueeze])
def test_without_loss_they_are_dpsgd(algorithm: type[CompressedMixer]) -> None:
    plan = PLANS["optimised"]
    network = Network(plan, partial(algorithm, gamma=1.0), Float32())
    models = network.models.copy()
    for t in range(5):
        rows = [plan.row(i, t) for i in range(plan.n)]
        neighbours = [{j: models[j] for j in row if j != i} for i, row in enumerate(rows)]
        models = np.stack([DPSGD(i).mix(models[i], rows[i], neighbours[i]) for i in range(plan.n)])
        network.mix()

    np.testing.assert_allclose(network.models, models, atol=3e-6)


@pytest.mark.parametrize("compressor", [Float32(), Int8(), TopK(0.1)], ids=lambda c: c.name)
def test_copies_are_the_sum_taken_apart(compressor: Compressor) -> None:
    """In the same bytes, while no link fails; but for fp32's rounding, of which a codec may make a step."""
    networks = [Network(PLANS["optimised"], make, compressor) for make in (ChocoSGD, ChocoCopies)]
    for network in networks:
        for _ in range(20):
            network.mix()

    assert networks[1].bytes == networks[0].bytes
    assert networks[1].distance == pytest.approx(networks[0].distance, rel=0.01)
    if isinstance(compressor, Float32):
        np.testing.assert_allclose(networks[1].models, networks[0].models, atol=3e-6)


def test_copies_do_not_pull_on_who_is_gone() -> None:
    """The mean of those that are there is kept from the first round without the others on."""
    network = Network(PLANS["torus"], ChocoCopies, Int4())
    for _ in range(5):
        network.mix()
    there = [node for node in range(16) if node not in (5, 6)]
    mean = network.models[there].mean(0, dtype=np.float64)
    for _ in range(60):
        network.mix(live=there)

    np.testing.assert_allclose(network.models[there].mean(0, dtype=np.float64), mean, atol=1e-6)
    for _ in range(150):
        network.mix()
    assert network.distance < 1e-4


def test_rows_of_a_node_are_enough() -> None:
    """A board has no plan: its rows make the same mixer, if it is told γ."""
    plan = PLANS["ring"]
    rows = NodeRows(3, [plan.row(3, 0)])
    codec, model = Int8().codec(SIZE), np.ones(SIZE, np.float32)
    whole = ChocoCopies(3, plan, codec)
    own = ChocoCopies(3, rows, codec, gamma=whole.gamma)

    assert own.outgoing(model, [2, 4]) == whole.outgoing(model, [2, 4])
    assert own.terms == whole.terms
    assert rows.n == 5
    with pytest.raises(ValueError, match="received node 2, expected 3"):
        rows.neighbours(2, 0)


@pytest.mark.parametrize("algorithm", [ChocoSGD, LinkChoco, DeepSqueeze])
def test_local_steps_on_quadratics_reach_the_optimum_of_the_mean(algorithm: type[CompressedMixer]) -> None:
    """f_i(x) = ½ ‖x − b_i‖²: the mean of all nodes' functions is least at the mean of the b_i."""
    plan = PLANS["torus"]
    network = Network(plan, algorithm, Int8())
    wanted = np.random.default_rng(9).standard_normal((plan.n, SIZE)).astype(np.float32)
    rate = 0.2
    for t in range(400):
        step = np.float32(rate / (1 + t / 20))
        network.models -= step * (network.models - wanted)
        network.mix()

    np.testing.assert_allclose(network.mean, wanted.mean(0), atol=5e-3)
    assert network.distance < 0.06 * np.linalg.norm(wanted - wanted.mean(0), axis=1).mean()


# ---------------------------------------------------------------- the mean


@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(2, 9),
    seed=st.integers(0, 2**16),
    compressor=st.sampled_from(COMPRESSORS),
    algorithm=st.sampled_from([ChocoSGD, ChocoCopies, LinkChoco, DeepSqueeze, PlainQuantised]),
    failing=st.sampled_from([0.0, 0.3]),
)
def test_every_round_keeps_the_mean(
    n: int, seed: int, compressor: Compressor, algorithm: type[CompressedMixer], failing: float
) -> None:
    """Also when links fail, which both ends see."""
    plan = full_graph_plan(load_graph(random_connected_graph(n, seed)))
    network = Network(plan, algorithm, compressor, seed, size=97)
    rng = np.random.default_rng(seed)
    for _ in range(6):
        network.models += rng.normal(0, 0.1, network.models.shape).astype(np.float32)
        failed = {link for link in map(tuple, plan.phase(0).links.tolist()) if rng.random() < failing}
        before, scale = network.mean, np.abs(network.models).max()

        network.mix(lambda t, i, j, failed=failed: (i, j) in failed)

        assert np.abs(network.mean - before).max() <= 1e-6 * max(scale, 1.0)


# ---------------------------------------------------------------- failures


@pytest.mark.parametrize("compressor", [Int8(), Int4(), TopK(0.1)], ids=lambda compressor: compressor.name)
@pytest.mark.parametrize("algorithm", [ChocoSGD, LinkChoco])
def test_links_that_fail_and_come_back_are_caught_up_with(
    algorithm: type[CompressedMixer], compressor: Compressor
) -> None:
    network = Network(PLANS["torus"], algorithm, compressor)
    mean, first = network.mean, network.distance
    rng = np.random.default_rng(3)
    failed = rng.random((400, 16, 16)) < 0.2
    for _ in range(400):
        network.mix(lambda t, i, j: failed[t, i, j])

    assert network.distance < 1e-3 * first
    np.testing.assert_allclose(network.mean, mean, atol=1e-4)
    if algorithm is ChocoSGD:
        assert {mixer._epoch for mixer in network.mixers} == {0}


def test_what_a_neighbour_has_missed_is_sent_once_and_whole() -> None:
    network = Network(PLANS["ring"], ChocoSGD, Int8())
    for _ in range(5):
        network.mix()
    usual = network.codec.largest_message

    def sizes() -> list[int]:
        before = network.bytes
        network.mix(lambda t, i, j: t in (5, 6) and (i, j) == (0, 1))
        return [network.bytes - before]

    missed, missed_again, caught_up, after = (sizes()[0] for _ in range(4))

    assert missed == missed_again
    assert after == missed * 16 // 14
    # As fp32, in both directions.
    whole = Float32().codec(SIZE).largest_message
    assert caught_up == after + 2 * whole
    assert usual < whole


def test_a_link_that_stays_away_stops_pulling() -> None:
    """One node leaves for good; the others agree with each other, on nearly the mean that they had."""
    network = Network(PLANS["torus"], ChocoSGD, Int8())
    for _ in range(60):
        network.mix()
    rng = np.random.default_rng(4)
    others = [node for node in range(16) if node != 5]
    network.models += rng.normal(0, 0.1, network.models.shape).astype(np.float32)
    for _ in range(60 + PATIENCE):
        network.mix(live=others)
    mean = network.models[others].mean(0, dtype=np.float64)
    before = np.square(network.models[others] - mean).sum()
    for _ in range(200):
        network.mix(live=others)

    after = network.models[others].mean(0, dtype=np.float64)
    np.testing.assert_allclose(after, mean, atol=1e-5)
    assert np.square(network.models[others] - after).sum() < 1e-6 or before < 1e-6
    assert {network.mixers[node]._epoch for node in others} == {1}
    # And comes back: it begins anew, too, and is brought along.
    for _ in range(150):
        network.mix()
    assert network.distance < 1e-4
    assert {mixer._epoch for mixer in network.mixers} == {network.mixers[0]._epoch}


@pytest.mark.parametrize("compressor", [Int8(), Int4(), TopK(0.1)], ids=lambda compressor: compressor.name)
@pytest.mark.parametrize("algorithm", [ChocoSGD, ChocoCopies, LinkChoco])
def test_a_message_that_one_end_missed_is_noticed_and_healed(
    algorithm: type[CompressedMixer], compressor: Compressor
) -> None:
    network = Network(PLANS["ring"], algorithm, compressor)
    for _ in range(30):
        network.mix()
    network.mix(lost=lambda t, sender, receiver: (sender, receiver) == (2, 3))
    mean, distance = network.mean, network.distance
    for _ in range(600):
        network.mix()

    assert network.distance < 0.1 * distance
    # Until it is noticed, one end pulls and the other does not.
    assert np.abs(network.mean - mean).max() < 0.1
    if algorithm is ChocoSGD:
        assert {mixer._epoch for mixer in network.mixers} == {1}


@pytest.mark.parametrize("algorithm", [ChocoSGD, ChocoCopies, LinkChoco, DeepSqueeze, PlainQuantised])
def test_a_node_that_lost_its_memory_is_healed(algorithm: type[CompressedMixer]) -> None:
    network = Network(PLANS["torus"], algorithm, Int8())
    for _ in range(20):
        network.mix()
    network.mixers[3] = network.make(3, network.plan, network.codec)
    for _ in range(150):
        network.mix()

    floor = 0.2 if algorithm in (DeepSqueeze, PlainQuantised) else 1e-4
    assert network.distance < floor


# ---------------------------------------------------------------- state


@pytest.mark.parametrize("compressor", [Int4(rounding="stochastic"), TopK(0.1)], ids=lambda c: c.name)
@pytest.mark.parametrize("algorithm", [ChocoSGD, ChocoCopies, LinkChoco, DeepSqueeze, PlainQuantised])
def test_a_restored_network_goes_on_to_the_bit(
    algorithm: type[CompressedMixer], compressor: Compressor
) -> None:
    def fails(t: int, i: int, j: int) -> bool:
        return (t + i + j) % 5 == 0

    network = Network(PLANS["torus"], algorithm, compressor)
    for _ in range(12):
        network.mix(fails)
    other = Network(PLANS["torus"], algorithm, compressor)
    other.models, other.round = network.models.copy(), network.round
    for mixer, memory in zip(other.mixers, network.mixers, strict=True):
        mixer.restore({name: array.copy() for name, array in memory.state().items()})
    for _ in range(12):
        network.mix(fails)
        other.mix(fails)

    np.testing.assert_array_equal(other.models, network.models)


@pytest.mark.parametrize("algorithm", [ChocoSGD, ChocoCopies, LinkChoco, DeepSqueeze])
@pytest.mark.parametrize("change", ["size", "dtype", "nan", "missing", "unknown", "counts"])
def test_a_state_of_another_kind_is_refused(algorithm: type[CompressedMixer], change: str) -> None:
    network = Network(PLANS["ring"], algorithm, Int8())
    for _ in range(3):
        network.mix()
    state = {name: array.copy() for name, array in network.mixers[0].state().items()}
    vector = next(name for name, array in state.items() if array.dtype == np.float32)
    counts = next(name for name, array in state.items() if array.dtype == np.int64)
    if change == "size":
        state[vector] = state[vector][1:]
    elif change == "dtype":
        state[vector] = state[vector].astype(np.float64)
    elif change == "nan":
        state[vector][3] = np.nan
    elif change == "missing":
        del state[vector]
    elif change == "unknown":
        state["owed/7000"] = np.zeros(SIZE, np.float32)
    else:
        state[counts] = -state[counts] - 1
    fresh = algorithm(0, network.plan, network.codec)
    before = {name: array.copy() for name, array in fresh.state().items()}

    with pytest.raises(ValueError, match="expected"):
        fresh.restore(state)

    for name, array in fresh.state().items():
        np.testing.assert_array_equal(array, before[name])


# ---------------------------------------------------------------- what is refused


def one_message(algorithm: type[CompressedMixer], compressor: Compressor) -> bytes:
    plan, codec = PLANS["ring"], compressor.codec(SIZE)
    return algorithm(1, plan, codec).outgoing(np.ones(SIZE, np.float32), [0])[0]


@pytest.mark.parametrize("algorithm", [ChocoSGD, ChocoCopies, LinkChoco, DeepSqueeze, PlainQuantised])
def test_another_codec_or_algorithm_is_refused_by_name(algorithm: type[CompressedMixer]) -> None:
    plan, codec = PLANS["ring"], Int8().codec(SIZE)
    mixer, model, row = algorithm(0, plan, codec), np.ones(SIZE, np.float32), plan.row(0, 0)
    mixer.outgoing(model, [1, 7])
    before = {name: array.copy() for name, array in mixer.state().items()}
    other = DeepSqueeze if algorithm is not DeepSqueeze else PlainQuantised

    with pytest.raises(CodecError, match="'int4/channel', expected 'int8/channel'"):
        mixer.mix(model, row, {1: one_message(algorithm, Int4())})
    with pytest.raises(CodecError, match=f"algorithm '{other.algorithm}', expected '{algorithm.algorithm}'"):
        mixer.mix(model, row, {1: one_message(other, Int8())})
    message = one_message(algorithm, Int8())
    for length in range(0, len(message), 7):
        with pytest.raises(CodecError):
            mixer.mix(model, row, {1: message[:length]})
    with pytest.raises(KeyError, match=r"received models from \[4\]"):
        mixer.mix(model, row, {4: message})

    for name, array in mixer.state().items():
        np.testing.assert_array_equal(array, before[name])


@settings(max_examples=100, deadline=None)
@given(
    message=st.binary(max_size=300),
    algorithm=st.sampled_from([ChocoSGD, ChocoCopies, LinkChoco, DeepSqueeze]),
)
def test_any_bytes_are_refused(message: bytes, algorithm: type[CompressedMixer]) -> None:
    plan, codec = PLANS["ring"], Int8().codec(SIZE)
    mixer, model = algorithm(0, plan, codec), np.ones(SIZE, np.float32)
    mixer.outgoing(model, [1, 7])

    with pytest.raises(CodecError):
        mixer.mix(model, plan.row(0, 0), {1: message})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda codec: ChocoSGD(0, MATCHINGS, codec),
            "4 phases, and ChocoSGD remembers a sum .* use LinkChoco",
        ),
        (lambda codec: ChocoCopies(0, MATCHINGS, codec), "4 phases, and all neighbours of ChocoCopies"),
        (lambda codec: ChocoCopies(0, PLANS["ring"], codec, memory=3999), "2 neighbours, .* take 4000 bytes"),
        (lambda codec: ChocoCopies(0, NodeRows(0, [{0: 1.0}]), codec), "gamma of ChocoCopies follows from a"),
        (lambda codec: ChocoSGD(8, PLANS["ring"], codec), "received node 8, expected 0 to 7"),
        (lambda codec: ChocoSGD(0, PLANS["ring"], codec, gamma=0.0), "gamma is 0.0, expected a positive"),
        (lambda codec: LinkChoco(0, MATCHINGS, codec, memory=3000), "4 neighbours, whose .* take 3200 bytes"),
    ],
)
def test_bad_arguments(make: Callable[[Codec], CompressedMixer], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(Int8().codec(SIZE))


@pytest.mark.parametrize("gamma", [1, np.float32(1), np.float64(1), None])
def test_equal_step_sizes_have_equal_terms(gamma: float | None) -> None:
    """Boards compare terms as text: however γ is written, it is the same."""
    codec = Int8().codec(SIZE)

    given = LinkChoco(0, MATCHINGS, codec, gamma=gamma)

    assert given.terms == LinkChoco(0, MATCHINGS, codec, gamma=1.0).terms


def test_memory_is_two_vectors_whatever_the_degree() -> None:
    plan = full_graph_plan(load_graph(nx.complete_graph(8)))
    network = Network(plan, ChocoSGD, Int8())
    for _ in range(3):
        network.mix()

    vectors = [array for array in network.mixers[0].state().values() if array.dtype == np.float32]

    assert len(vectors) == 2


def test_a_layout_gives_each_channel_its_scale() -> None:
    layout = Layout.of({"small": np.zeros((2, 50), np.float32), "large": np.zeros((1, 100), np.float32)})
    plan = PLANS["ring"]
    codec = Int8().codec(layout)
    mixer = ChocoSGD(0, plan, codec)
    model = np.concatenate([np.full(100, 1e-4), np.full(100, 10.0)]).astype(np.float32)

    mixer.outgoing(model, [1])
    received = ChocoSGD(1, plan, codec)
    received.outgoing(np.zeros(SIZE, np.float32), [0])
    mixed = received.mix(np.zeros(SIZE, np.float32), plan.row(1, 0), {0: mixer.outgoing(model, [1])[1]})

    np.testing.assert_allclose(mixed, plan.row(1, 0)[0] * received.gamma * model, rtol=1e-5)
