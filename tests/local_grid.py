"""Flower's Grid without its transport: real messages to a real ClientApp, in this process."""

from collections.abc import Callable, Iterable, Mapping

from flwr.app import ConfigRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

try:  # a Message asks its process who it is; Flower's own start-up code would have said so
    from flwr.supercore.task_identity import TaskIdentity
except ImportError:  # older releases fill it in when the message is sent
    pass
else:
    TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1

Fault = Callable[[int, Message, Message], Message | None]


class LocalGrid(Grid):
    """Every message is answered at once by `app`, as node `partition` of `len(node_ids)`.

    `fault(partition, message, reply)` may return another reply, or None for a node that stays silent. What
    was sent is kept in `sent`."""

    def __init__(
        self,
        app: ClientApp,
        node_ids: list[int],
        run_config: Mapping[str, bool | float | int | str] | None = None,
        fault: Fault | None = None,
    ) -> None:
        self.app = app
        self.partitions = {node_id: partition for partition, node_id in enumerate(node_ids)}
        self.connected = list(node_ids)
        self.run_config = dict(run_config or {})
        self.fault = fault
        self.sent: list[Message] = []

    def set_run(self, run: object) -> None:
        raise AssertionError("a strategy does not set the run")

    @property
    def run(self) -> object:
        raise AssertionError("a strategy does not need the run")

    def create_message(self, *args: object, **kwargs: object) -> Message:
        raise AssertionError("deprecated in Flower")

    def get_node_ids(self) -> Iterable[int]:
        return list(self.connected)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        raise AssertionError("the strategies use send_and_receive")

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        raise AssertionError("the strategies use send_and_receive")

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        assert isinstance(messages, list), "a generator fails in deployment"
        self.sent += messages
        return [reply for message in messages if (reply := self._answer(message)) is not None]

    def _answer(self, message: Message) -> Message | None:
        partition = self.partitions[message.metadata.dst_node_id]
        context = Context(
            run_id=1,
            node_id=message.metadata.dst_node_id,
            node_config={"partition-id": partition, "num-partitions": len(self.partitions)},
            state=RecordDict(),
            run_config=self.run_config,
        )
        try:
            reply = self.app(message, context)
        except Exception as error:
            reply = Message(Error(code=0, reason=repr(error)), reply_to=message)
        return reply if self.fault is None else self.fault(partition, message, reply)


def round_of(message: Message) -> int:
    """The round that a message belongs to."""
    config: ConfigRecord = message.content.config_records["config"]
    return int(config["server-round"])
