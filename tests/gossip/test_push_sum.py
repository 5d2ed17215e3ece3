"""Push-sum: nothing is lost whatever messages are, and all come to the mean."""

from collections.abc import Callable

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flower_edge.gossip import CodecError, DirectedPlan, PushSum

pytestmark = pytest.mark.board

SIZE = 33
RING = DirectedPlan(5, [[0, 1], [1, 2], [2, 3], [3, 4], [4, 0], [0, 2]])


def random_plan(n: int, seed: int) -> DirectedPlan:
    """A cycle in random order, and some arcs more."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(n)
    arcs = {(int(a), int(b)) for a, b in zip(order, np.roll(order, -1), strict=True)}
    for _ in range(n):
        a, b = rng.choice(n, 2, replace=False).tolist()
        arcs.add((a, b))
    return DirectedPlan(n, sorted(arcs))


class Network:
    """All nodes of a plan; `lost` says which messages do not arrive, which their senders never learn."""

    def __init__(self, plan: DirectedPlan, seed: int = 0) -> None:
        self.plan = plan
        self.mixers = [PushSum(node, plan) for node in range(plan.n)]
        self.models = list(np.random.default_rng(seed).standard_normal((plan.n, SIZE)).astype(np.float32))
        self.total = np.sum(self.models, axis=0, dtype=np.float64)

    def train(self, steps: np.ndarray) -> None:
        for node, step in enumerate(steps):
            trained = self.models[node] + step
            self.total += trained.astype(np.float64) - self.models[node]
            self.models[node] = trained

    def mix(self, lost: Callable[[int, int], bool] = lambda sender, receiver: False) -> None:
        sent = [
            mixer.outgoing(model, self.plan.neighbours(node, 0))
            for node, (mixer, model) in enumerate(zip(self.mixers, self.models, strict=True))
        ]
        for node, mixer in enumerate(self.mixers):
            received = {
                j: sent[j][node] for j in self.plan.senders(node) if node in sent[j] and not lost(j, node)
            }
            self.models[node] = mixer.mix(self.models[node], self.plan.row(node, 0), received)

    def check_mass(self) -> None:
        """What the nodes have and what is under way is what there was."""
        states = [mixer.state() for mixer in self.mixers]
        mass = sum(state["mass"] for state in states)
        weight = sum(float(state["weight"][0]) for state in states)
        for sender, mixer in enumerate(self.mixers):
            for receiver, given_ in mixer._given.items():
                got = self.mixers[receiver]._got.get(sender)
                mass = mass + given_.vector.astype(np.float64) - (0 if got is None else got.vector)
                weight += given_.weight - (0 if got is None else got.weight)
        np.testing.assert_allclose(mass, self.total, rtol=1e-9, atol=1e-9)
        assert weight == pytest.approx(self.plan.n, rel=1e-12)


@settings(max_examples=40, deadline=None)
@given(n=st.integers(2, 9), seed=st.integers(0, 2**16), losing=st.sampled_from([0.0, 0.3, 0.8]))
def test_mass_is_kept_through_one_way_losses(n: int, seed: int, losing: float) -> None:
    network = Network(random_plan(n, seed), seed)
    rng = np.random.default_rng(seed)
    for _ in range(15):
        network.train(rng.normal(0, 0.1, (n, SIZE)).astype(np.float32))
        network.mix(lambda sender, receiver: rng.random() < losing)
        network.check_mass()
        assert all(mixer.weight > 0 for mixer in network.mixers)


@pytest.mark.parametrize("losing", [0.0, 0.4])
@pytest.mark.parametrize("seed", range(4))
def test_models_come_to_the_mean_of_all(seed: int, losing: float) -> None:
    network = Network(random_plan(7, seed), seed)
    rng = np.random.default_rng(seed)
    for _ in range(400):
        network.mix(lambda sender, receiver: rng.random() < losing)

    for model in network.models:
        np.testing.assert_allclose(model, network.total / 7, atol=2e-4)


def test_a_row_that_is_not_doubly_stochastic_would_not() -> None:
    """Equal shares alone lead elsewhere: the weight is what makes up for it."""
    stationary = np.linalg.matrix_power(RING.matrix, 500)[:, 0]

    assert stationary.max() > 1.5 * stationary.min()
    assert 0 < RING.rho < 1
    np.testing.assert_allclose(RING.matrix.sum(0), 1.0)
    for node in range(5):
        row = RING.row(node, 0)
        assert {j: weight for j, weight in row.items() if weight} == {
            j: RING.matrix[j, node] for j in range(5) if RING.matrix[j, node]
        }


def test_what_a_broken_line_held_arrives_with_the_next_message() -> None:
    network = Network(RING)
    for _ in range(20):
        network.mix(lambda sender, receiver: (sender, receiver) == (1, 2))
    held = network.mixers[1]._given[2].weight
    before = network.mixers[2].weight
    assert 2 not in network.mixers[2]._got
    network.mix()

    assert network.mixers[2].weight > before + 0.3 * held
    network.check_mass()


def test_a_node_that_comes_back_with_an_older_state_takes_back_what_it_gave_since() -> None:
    network = Network(RING)
    for _ in range(5):
        network.mix()
    older = {name: array.copy() for name, array in network.mixers[1].state().items()}
    for _ in range(3):
        network.mix()
    network.mixers[1] = PushSum(1, RING)
    network.mixers[1].restore(older)
    network.models[1] = older["model"]
    for _ in range(400):
        network.mix()

    network.check_mass()
    for model in network.models:
        np.testing.assert_allclose(model, network.total / 5, atol=2e-4)


def test_a_node_that_lost_its_memory_begins_a_new_life() -> None:
    """What it had is gone, no more: the fleet is not led back to its past, and does not learn slower."""
    network = Network(RING)
    network.models = [np.zeros(SIZE, np.float32) for _ in range(5)]
    one = np.ones((5, SIZE), np.float32)
    for _ in range(100):
        network.train(one)
        network.mix()
    network.mixers[1], network.models[1] = PushSum(1, RING), np.zeros(SIZE, np.float32)
    for _ in range(100):
        network.mix()

    weight = sum(mixer.weight for mixer in network.mixers)
    assert 4 < weight < 5.5
    # Four nodes are at 100, the fifth has begun anew.
    np.testing.assert_allclose(network.models, 100 * (weight - 1) / weight, rtol=0.01)
    before = network.models[0].copy()
    for _ in range(10):
        network.train(one)
        network.mix()
    np.testing.assert_allclose(network.models[0] - before, 10, rtol=0.25)


def test_a_node_that_was_slow_in_its_first_round_gains_all_that_it_was_given() -> None:
    network = Network(RING)
    slow = network.mixers[1]
    for _ in range(10):
        sent = network.mixers[0].outgoing(network.models[0], [1, 2])
        network.models[0] = network.mixers[0].mix(network.models[0], RING.row(0, 0), {})
    slow.missed(9)
    slow.outgoing(network.models[1], [2])
    network.models[1] = slow.mix(network.models[1], RING.row(1, 0), {0: sent[1]})

    assert slow.weight > 0.6
    assert slow._got[0].weight == network.mixers[0]._given[1].weight
    assert slow.weight == pytest.approx(1 - slow._given[2].weight + slow._got[0].weight)


def test_a_restored_node_goes_on_to_the_bit() -> None:
    networks = [Network(RING), Network(RING)]
    for network in networks:
        for _ in range(6):
            network.mix(lambda sender, receiver: sender == 3)
    for node in range(5):
        state = networks[1].mixers[node].state()
        networks[1].mixers[node] = PushSum(node, RING)
        networks[1].mixers[node].restore(state)
    for network in networks:
        for _ in range(6):
            network.mix()

    np.testing.assert_array_equal(networks[0].models, networks[1].models)


@settings(max_examples=60, deadline=None)
@given(message=st.binary(max_size=200))
def test_any_bytes_are_refused(message: bytes) -> None:
    network = Network(RING)
    network.mix()

    with pytest.raises(CodecError):
        network.mixers[1].mix(network.models[1], RING.row(1, 0), {0: message})


def test_messages_and_states_of_another_kind_are_refused() -> None:
    network = Network(RING)
    network.mix()
    message = network.mixers[0].outgoing(network.models[0], [1])[1]
    assert len(message) == PushSum.largest_message(SIZE)
    spoilt = [
        message[:-4],
        message[:-1],
        message[:16] + np.float64(np.nan).tobytes() + message[24:],
        message[:-4] + np.float32(np.inf).tobytes(),
        b"x" + message[1:],
    ]
    before = network.mixers[1].state()["mass"].copy()
    for wrong in spoilt:
        with pytest.raises(CodecError):
            network.mixers[1].mix(network.models[1], RING.row(1, 0), {0: wrong})
    with pytest.raises(KeyError, match="hears of"):
        network.mixers[0].mix(network.models[0], RING.row(0, 0), {1: message})
    np.testing.assert_array_equal(network.mixers[1].state()["mass"], before)

    for change in ("mass", "given/1", "weight", "got-lives"):
        state = network.mixers[0].state()
        state[change] = state[change][1:] if change != "weight" else np.array([-1.0])
        with pytest.raises(ValueError, match="PushSum"):
            PushSum(0, RING).restore(state)
    state = network.mixers[0].state()
    state["life"] = state["life"][:, :1]
    with pytest.raises(ValueError, match=r"without rounds, of an earlier release, .* remove the file"):
        PushSum(0, RING).restore(state)
    with pytest.raises(ValueError, match="received sums of"):
        PushSum(1, RING).restore(network.mixers[0].state())


@pytest.mark.parametrize(
    ("n", "arcs", "message"),
    [
        (1, [], "received a plan for n = 1"),
        (3, [[0, 1], [1, 3]], "expected nodes 0..2"),
        (
            2,
            [[0.9, 1.2], [1.9, 0.1]],
            r"received arcs of float64 \(2, 2\), expected integers of shape \(m, 2\)",
        ),
        (2, [[0, 1, 1, 0]], r"received arcs of int64 \(1, 4\), expected"),
        (2, [0, 1, 1, 0], r"received arcs of int64 \(4,\), expected"),
        (3, [[0, 0]], "from node 0 to itself"),
        (3, [[0, 1], [0, 1]], "twice"),
        (3, [[0, 1], [1, 2]], r"node 0 is not reached by nodes \[1, 2\]"),
        (3, [[1, 0], [2, 1]], r"node 0 does not reach nodes \[1, 2\]"),
    ],
)
def test_plans_that_are_none(n: int, arcs: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DirectedPlan(n, arcs)


def test_plans_are_equal_whatever_the_order() -> None:
    graph = nx.DiGraph(RING.arcs.tolist())

    assert DirectedPlan(5, list(graph.edges)[::-1]) == RING
    assert hash(RING) == hash(DirectedPlan(5, RING.arcs))
    assert RING.describe().startswith("directed, 5 nodes, 6 arcs, ρ = 0.")
    with pytest.raises(ValueError, match="received node 5"):
        PushSum(5, RING)
