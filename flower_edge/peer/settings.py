"""How long a session waits, and what it takes from others."""

import math
from dataclasses import dataclass, fields


@dataclass(frozen=True)
class PeerSettings:
    """Every wait of a session has a name here; all are in seconds.

    Parameters
    ----------
    connect_timeout : float, default 60
        How long a session waits, before its first round, for its neighbours to connect.
    handshake_timeout : float, default 10
        How long a new connection may take to show who is there.
    peer_timeout : float, default 30
        How long a node waits in a round, its own training done, for a neighbour's model. One that is late is
        left out of the round, and no longer waited for until it is heard of again. Has to be more than the
        slowest and the fastest node's training differ by.
    decision_timeout : float, default 3
        How long a node that is ready waits to be told whether the link counts, before it goes on in doubt.
    redial_interval : float, default 1
        From one attempt to reach a neighbour to the next.
    keepalive_interval : float, default 10
        From one sign of life on a silent connection to the next.
    keepalive_timeout : float, default 10
        How long the answer to it may take, before the connection counts as broken.
    farewell_timeout : float, default 10
        How long a node that is done stays, for neighbours that are not, and for doubts to be settled.
    largest_element : float, default 1e8
        A neighbour's model with an element above this in absolute value is refused, as is NaN.
    insecure : bool, default False
        Whether links are in clear text, and nobody has to show who they are. Anyone who reaches the port
        can then read and change models; each session says so in a warning.

    Raises
    ------
    ValueError
        If a value is not positive, or not finite.
    """

    connect_timeout: float = 60.0
    handshake_timeout: float = 10.0
    peer_timeout: float = 30.0
    decision_timeout: float = 3.0
    redial_interval: float = 1.0
    keepalive_interval: float = 10.0
    keepalive_timeout: float = 10.0
    farewell_timeout: float = 10.0
    largest_element: float = 1e8
    insecure: bool = False

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "insecure":
                if not isinstance(value, bool):
                    raise ValueError(f"insecure is {value!r}; expected True or False")
            elif isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
                raise ValueError(f"{field.name} is {value!r}; expected a positive number")
