"""What nodes reply, without trusting it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from logging import WARNING, getLogger

from flwr.app import Message, RecordDict

log = getLogger("flwr").log


def accept(replies: Iterable[Message], take: Callable[[int, RecordDict], None]) -> int:
    """Hand the content of each reply to `take`, and log why one is no good.

    Parameters
    ----------
    replies : iterable of Message
        Errors among them are logged and left out.
    take : callable
        ``(node_id, content)``; raises a KeyError, TypeError or ValueError for what it rejects, which must
        then have left no trace.

    Returns
    -------
    int
        How many were rejected; errors are not counted.
    """
    rejected = 0
    for reply in replies:
        node_id = reply.metadata.src_node_id
        if reply.has_error():
            log(WARNING, "\t> Received error in reply from node %d: %s", node_id, reply.error.reason)
            continue
        try:
            take(node_id, reply.content)
        except (KeyError, TypeError, ValueError) as error:
            rejected += 1
            log(WARNING, "\t> Rejected the reply of node %d: %s", node_id, error)
    return rejected
