"""Six hosts in six network namespaces: cables are pulled, the network falls into halves, and is slow."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from network import Network, NoNetworkError, network
from node_processes import NODES, Node, Processes, check_mean, check_survivors, counted, processes

HALVES = ({0, 1, 2}, {3, 4, 5})


@pytest.fixture
def net() -> Iterator[Network]:
    """Needs root."""
    try:
        with network(NODES) as built:
            yield built
    except NoNetworkError as error:
        pytest.skip(str(error))


def on(net: Network, folder: Path, rounds: int, **options: object) -> object:
    addresses = [f"{net.address(host)}:9700" for host in range(NODES)]
    prefixes = [net.prefix(host) for host in range(NODES)]
    return processes(folder, rounds=rounds, addresses=addresses, prefixes=prefixes, **options)


def start(fleet: Processes) -> list[Node]:
    return [fleet.start(node) for node in range(NODES)]


def late(node: Node, other: int) -> bool:
    """Whether a link counted in the last tenth of the rounds."""
    rounds = node.done["rounds"]
    return any(other in found for round_, _, found, *_ in rounds if round_ > 0.9 * node.config["rounds"])


@pytest.mark.parametrize(
    ("count", "seconds"),
    [
        pytest.param(1, 4.0),
        pytest.param(1, 20.0, marks=pytest.mark.slow),
        pytest.param(2, 20.0, marks=pytest.mark.slow),
    ],
)
def test_a_cable_that_is_pulled(net: Network, tmp_path: Path, count: int, seconds: float) -> None:
    lost = [4, 0][:count]
    with on(net, tmp_path, rounds=round(60 + seconds * 10), seconds=0.1) as fleet:
        nodes = start(fleet)
        nodes[1].reaches(10)
        for host in lost:
            net.unplug(host)
        time.sleep(seconds)
        for host in lost:
            net.plug(host)
        check_survivors(nodes, [])

    check_mean(nodes)
    for host in lost:
        for neighbour in fleet.plan.neighbours(host, 0):
            assert counted(nodes[host], neighbour) < len(nodes[host].done["rounds"])
            assert late(nodes[host], neighbour)


def test_two_halves_for_five_rounds(net: Network, tmp_path: Path) -> None:
    with on(net, tmp_path, rounds=100, seconds=0.1) as fleet:
        nodes = start(fleet)
        nodes[0].reaches(10)
        net.split()
        reached = nodes[0].said[-1]["round"]
        nodes[0].reaches(reached + 6)
        nodes[5].reaches(reached + 6)
        net.heal()
        check_survivors(nodes, [])

    check_mean(nodes)
    across = [
        (i, j) for i, j in fleet.plan.phases[0].links.tolist() if {i, j} & HALVES[0] and {i, j} & HALVES[1]
    ]
    within = [link for link in fleet.plan.phases[0].links.tolist() if tuple(link) not in across]
    assert across
    assert within
    for i, j in across:
        assert counted(nodes[i], j) == counted(nodes[j], i) <= 95
        assert late(nodes[i], j)
    for i, j in within:
        assert counted(nodes[i], j) > 90


def test_a_slow_cable_slows_and_breaks_nothing(net: Network, tmp_path: Path) -> None:
    """20 Mbit/s at one host: a model of 178 kB takes 71 ms for each of its neighbours."""
    try:
        net.shape(4, "tbf", "rate", "20mbit", "burst", "32kbit", "latency", "400ms")
    except NoNetworkError as error:
        pytest.skip(str(error))
    with on(net, tmp_path, rounds=12, seconds=0.0) as fleet:
        nodes = start(fleet)
        check_survivors(nodes, [])

    check_mean(nodes)
    assert all(neighbours == len(found) for node in nodes for _, neighbours, found, *_ in node.done["rounds"])


IMPAIRMENTS = {
    "latency": "delay 50ms 10ms",
    "loss": "loss 2%",
    "rate": "rate 20mbit",
    "all three": "delay 25ms 5ms loss 1% rate 100mbit",
}


@pytest.mark.parametrize(
    "what",
    [name if name == "all three" else pytest.param(name, marks=pytest.mark.slow) for name in IMPAIRMENTS],
)
def test_latency_loss_and_rate(net: Network, tmp_path: Path, what: str) -> None:
    """Of what every host sends."""
    try:
        for host in range(NODES):
            net.shape(host, "netem", *IMPAIRMENTS[what].split())
    except NoNetworkError as error:
        pytest.skip(str(error))
    with on(net, tmp_path, rounds=12, seconds=0.0) as fleet:
        nodes = start(fleet)
        check_survivors(nodes, [])

    check_mean(nodes)
    assert sum(counted(nodes[4], other) for other in range(NODES)) > 0
