"""A LocalGrid whose nodes answer at the same time, each at an address of its own."""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from local_grid import LocalGrid
from node_processes import free_ports


class ThreadedGrid(LocalGrid):
    """Files of the nodes lie below `folder`; what was answered is kept in `replies`."""

    def __init__(self, app: ClientApp, node_ids: list[int], folder: Path, **options: object) -> None:
        super().__init__(app, node_ids, **options)
        self.folder = folder
        self.addresses = [f"127.0.0.1:{port}" for port in free_ports(len(node_ids))]
        self.replies: list[Message] = []

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        messages = list(messages)
        self.sent += messages
        with ThreadPoolExecutor(max(len(messages), 1)) as pool:
            found = list(pool.map(self._answer, messages))
        replies = [reply for reply in found if reply is not None]
        self.replies += replies
        return replies

    def _answer(self, message: Message) -> Message | None:
        node_id = message.metadata.dst_node_id
        partition = self.partitions[node_id]
        config = {
            "partition-id": partition,
            "num-partitions": len(self.partitions),
            "gossip-address": self.addresses[partition],
            "gossip-folder": str(self.folder),
        }
        context = Context(1, node_id, config, RecordDict(), self.run_config)
        try:
            reply = self.app(message, context)
        except Exception as error:
            reply = Message(Error(code=0, reason=repr(error)), reply_to=message)
        return reply if self.fault is None else self.fault(partition, message, reply)
