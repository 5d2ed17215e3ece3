"""What nodes reply, without trusting it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from logging import WARNING, getLogger
from typing import NamedTuple

from flwr.app import Message, RecordDict

log = getLogger("flwr").log


class Refused(NamedTuple):
    """How many replies were no good.

    Attributes
    ----------
    errors : int
        Said that the node failed, or that Flower gave it up.
    rejected : int
        Held something that is not what was asked for.
    """

    errors: int
    rejected: int


def accept(replies: Iterable[Message], take: Callable[[int, RecordDict], None]) -> Refused:
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
    Refused
    """
    errors = rejected = 0
    for reply in replies:
        node_id = reply.metadata.src_node_id
        if reply.has_error():
            errors += 1
            log(WARNING, "\t> Received error in reply from node %d: %s", node_id, reply.error.reason)
            continue
        try:
            take(node_id, reply.content)
        except (KeyError, TypeError, ValueError) as error:
            rejected += 1
            log(WARNING, "\t> Rejected the reply of node %d: %s", node_id, error)
    return Refused(errors, rejected)
