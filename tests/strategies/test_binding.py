"""Which Flower node is which node of the plan."""

import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from local_grid import LocalGrid

from flower_edge.strategies import TooFewNodesError
from flower_edge.strategies.binding import NodeBinding


def answering(partitions: dict[int, object]) -> ClientApp:
    """An app whose node says the partition given for its place in the grid."""
    app = ClientApp()

    @app.query("gossip")
    def query(message: Message, context: Context) -> Message:
        partition = partitions[context.node_config["partition-id"]]
        return Message(RecordDict({"gossip": ConfigRecord({"partition-id": partition})}), reply_to=message)

    return app


def test_by_node_id_is_the_order_of_ids() -> None:
    binding = NodeBinding(3, "node-id")

    binding.bind_all(LocalGrid(ClientApp(), [30, 10, 20]), timeout=1)

    assert binding.bound == {10: 0, 20: 1, 30: 2}


def test_by_partition_asks_every_node_once() -> None:
    grid = LocalGrid(answering({0: 2, 1: 0, 2: 1}), [30, 10, 20])
    binding = NodeBinding(3, "partition-id")

    binding.bind_all(grid, timeout=1)
    nodes = binding.refresh(grid)

    assert nodes == {2: 30, 0: 10, 1: 20}
    assert len(grid.sent) == 3


def test_a_node_that_is_gone_keeps_its_place_until_a_newcomer_takes_it() -> None:
    grid = LocalGrid(ClientApp(), [10, 20, 30, 25])
    grid.connected = [10, 20, 30]
    binding = NodeBinding(3, "node-id")
    binding.bind_all(grid, timeout=1)

    grid.connected = [10, 30]
    assert binding.refresh(grid) == {0: 10, 2: 30}
    grid.connected = [10, 20, 30]
    assert binding.refresh(grid) == {0: 10, 1: 20, 2: 30}
    grid.connected = [10, 25, 30]
    assert binding.refresh(grid) == {0: 10, 1: 25, 2: 30}


def test_a_restarted_board_gets_its_own_place_back() -> None:
    grid = LocalGrid(answering({0: 0, 1: 1, 2: 2, 3: 1}), [10, 20, 30, 77])
    grid.connected = [10, 20, 30]
    binding = NodeBinding(3, "partition-id")
    binding.bind_all(grid, timeout=1)

    grid.connected = [10, 20, 30, 77]  # the old id lingers: its place is not given away yet
    assert binding.refresh(grid) == {0: 10, 1: 20, 2: 30}
    grid.connected = [10, 30, 77]
    assert binding.refresh(grid) == {0: 10, 1: 77, 2: 30}


def test_a_surplus_node_sits_out_after_the_start() -> None:
    grid = LocalGrid(ClientApp(), [10, 20, 30])
    grid.connected = [10, 20]
    binding = NodeBinding(2, "node-id")
    binding.bind_all(grid, timeout=1)

    grid.connected = [10, 20, 30]

    assert binding.refresh(grid) == {0: 10, 1: 20}


@pytest.mark.parametrize(
    ("partitions", "message"),
    [
        ({0: 0, 1: 0}, "nodes 10 and 20 both have partition-id 0"),
        ({0: 0, 1: 2}, "node 20 has partition-id 2; the plan has nodes 0 to 1"),
        ({0: 0, 1: -1}, "node 20 has partition-id -1"),
        ({0: 0, 1: "one"}, "node 20 has partition-id 'one'"),
    ],
)
def test_partitions_that_do_not_fit(partitions: dict[int, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NodeBinding(2, "partition-id").bind_all(LocalGrid(answering(partitions), [10, 20]), timeout=1)


def test_an_app_that_cannot_answer_is_named() -> None:
    with pytest.raises(RuntimeError, match=r"could not answer 'query\.gossip'.*bind_by='node-id'"):
        NodeBinding(2, "partition-id").bind_all(LocalGrid(ClientApp(), [10, 20]), timeout=1)


def test_a_silent_node_is_too_few() -> None:
    grid = LocalGrid(
        answering({0: 0, 1: 1}), [10, 20], fault=lambda partition, _, reply: None if partition else reply
    )

    with pytest.raises(TooFewNodesError, match="1 of 2 nodes did not say their partition"):
        NodeBinding(2, "partition-id").bind_all(grid, timeout=1)
