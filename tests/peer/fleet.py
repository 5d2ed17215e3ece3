"""Real sessions in one event loop, with wires between them that can be cut."""

import asyncio
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from node_processes import free_ports
from relay import Relay

from flower_edge.gossip import GossipPlan, Mixer
from flower_edge.peer import Identity, Member, PeerSession, PeerSettings, SessionReport, rows_of
from flower_edge.peer.frames import Kind
from flower_edge.peer.neighbour import Neighbour

FAST = PeerSettings(
    connect_timeout=10.0,
    peer_timeout=1.0,
    decision_timeout=0.3,
    redial_interval=0.05,
    farewell_timeout=3.0,
)


def when_sent(
    monkeypatch: pytest.MonkeyPatch, kind: Kind, round_: int, act: Callable[[], None]
) -> asyncio.Event:
    """Have `act` called right before the first message of this kind and round leaves a node in here."""
    send, happened = Neighbour._send, asyncio.Event()

    def watched(self: Neighbour, sent: Kind, of: int) -> None:
        if (sent, of) == (kind, round_) and not happened.is_set():
            happened.set()
            act()
        send(self, sent, of)

    monkeypatch.setattr(Neighbour, "_send", watched)
    return happened


class Fleet:
    """Nodes 0 to n-1 of a plan; node i starts with the constant i and its training adds ``gains[i]``."""

    def __init__(
        self,
        plan: GossipPlan,
        elements: int = 97,
        settings: PeerSettings | Mapping[int, PeerSettings] = FAST,
        *,
        seconds: float | Callable[[int, int], float] = 0.0,
        folder: Path | None = None,
        mixer: Callable[[int], Mixer] | None = None,
        **options: object,
    ) -> None:
        self.plan = plan
        self.settings = settings
        self.seconds = seconds
        self.folder = folder
        self.mixer = mixer
        self.options = options
        self.elements = elements
        draw = np.random.default_rng(0)
        self.start = [np.full(elements, node, np.float32) for node in range(plan.n)]
        self.gains = draw.standard_normal((plan.n, elements)).astype(np.float32)
        self.identities = [Identity.temporary() for _ in range(plan.n)]
        self.ports = free_ports(plan.n)
        self.relays: dict[tuple[int, int], Relay] = {}
        self.trained: dict[int, list[int]] = {node: [] for node in range(plan.n)}

    async def lay_wires(self) -> None:
        """Put a relay into every link of the plan."""
        for phase in self.plan.phases:
            for i, j in phase.links.tolist():
                if (i, j) not in self.relays:
                    self.relays[i, j] = relay = Relay(self.ports[j])
                    await relay.start()

    async def pull_wires(self) -> None:
        for relay in self.relays.values():
            await relay.stop()

    def members(self, node: int) -> list[Member]:
        """Return how `node` reaches the others."""
        relays = {j: relay.port for (i, j), relay in self.relays.items() if i == node}
        return [
            Member(other, f"127.0.0.1:{relays.get(other, port)}", self.identities[other].certificate)
            for other, port in enumerate(self.ports)
        ]

    def session(self, node: int, **options: object) -> PeerSession:
        settings = self.settings if isinstance(self.settings, PeerSettings) else self.settings[node]
        state = None if self.folder is None else self.folder / f"node-{node}"
        arguments = {
            "run": "a test",
            "listen": f"127.0.0.1:{self.ports[node]}",
            "identity": self.identities[node],
            "settings": settings,
            "state": state,
            "mixer": None if self.mixer is None else self.mixer(node),
            **self.options,
            **options,
        }
        return PeerSession(
            node,
            rows_of(self.plan, node),
            self.members(node),
            self.start[node],
            lambda model, round_: self.train(node, model, round_),
            **arguments,
        )

    def train(self, node: int, model: np.ndarray, round_: int) -> tuple[np.ndarray, dict[str, float]]:
        time.sleep(self.seconds if isinstance(self.seconds, float) else self.seconds(node, round_))
        self.trained[node].append(round_)
        return model + self.gains[node], {"train_loss": float(round_)}

    async def run(self, rounds: int) -> list[SessionReport]:
        return await asyncio.gather(*(self.session(node).run_async(rounds) for node in range(self.plan.n)))

    async def run_through_a_doubt(
        self, rounds: int, counts: bool, monkeypatch: pytest.MonkeyPatch
    ) -> list[SessionReport]:
        """Cut the cable for a while: when node 0 has counted the link of round 3, or has been asked to."""
        await self.lay_wires()
        (relay,) = self.relays.values()
        if counts:
            happened = when_sent(monkeypatch, Kind.COMMIT, 3, relay.cut)
        else:
            happened = when_sent(monkeypatch, Kind.READY, 3, relay.freeze)
        running = asyncio.ensure_future(self.run(rounds))
        await happened.wait()
        if counts:
            await asyncio.sleep(FAST.decision_timeout + 0.1)
        else:
            await asyncio.sleep(FAST.peer_timeout + 0.2)
            relay.cut()
            await asyncio.sleep(0.05)
        relay.heal()
        reports = await running
        await self.pull_wires()
        return reports

    def check_mean(self, reports: list[SessionReport]) -> None:
        """Every node's training is in the mean of all models as often as the node trained.

        That is so if links fail for both ends or for neither. The error is that of a vector: nodes that are
        apart have large elements whose mean may be small, and fp32 rounds the large ones."""
        total = np.sum(self.start, axis=0, dtype=np.float64)
        for gain, report in zip(self.gains, reports, strict=True):
            total += len(report.rounds) * gain.astype(np.float64)
        expected = total / self.plan.n
        found = np.mean([report.model for report in reports], axis=0, dtype=np.float64)
        assert np.linalg.norm(found - expected) <= 1e-5 * np.linalg.norm(expected)
