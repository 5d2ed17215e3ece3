"""What strategies log of themselves at the start."""

from __future__ import annotations

from logging import INFO, WARNING, getLogger
from typing import TYPE_CHECKING

from flower_edge.gossip.directed import DirectedPlan

if TYPE_CHECKING:
    from flower_edge.strategies.hosted_gossip import HostedGossip
    from flower_edge.strategies.serverless_gossip import ServerlessGossip

log = getLogger("flwr").log


def log_summary(strategy: HostedGossip) -> None:
    """Log the plan, and how the strategy is set."""
    links = strategy.plan.links_per_node(1)
    log(INFO, "\t├──> Gossip plan:")
    log(
        INFO,
        "\t│\t├── Nodes: %d | links: %d | phases: %d",
        strategy.plan.n,
        links.sum() // 2,
        len(strategy.plan.phases),
    )
    log(
        INFO,
        "\t│\t├── rho = ‖W − J‖: %.4f | spectral gap: %.4f",
        strategy.plan.rho,
        strategy.plan.spectral_gap,
    )
    log(INFO, "\t│\t├── Links of a node: %d to %d", links.min(), links.max())
    if isinstance(strategy.plan, DirectedPlan) or strategy.plan.energy is None:
        log(INFO, "\t│\t└── Energy: no model")
    else:
        busiest = strategy.plan.energy_per_node(1).max()
        log(INFO, "\t│\t└── Busiest node: %.3g Wh a round (modelled)", busiest)
    log(INFO, "\t├──> Messages between nodes: %s", _messages(strategy))
    log(INFO, "\t├──> Nodes:")
    log(INFO, "\t│\t├── Minimum that train well in a round: %d", strategy.min_nodes)
    log(
        INFO,
        "\t│\t├── Fraction: evaluate (%.2f), every %d rounds",
        strategy.fraction_evaluate,
        strategy.evaluate_every,
    )
    log(INFO, "\t│\t├── Bound by: %s", strategy.bind_by)
    log(INFO, "\t│\t├── Updates: %s", _updates(strategy))
    deadline = "none" if strategy.deadline is None else f"{strategy.deadline:g} s a round"
    log(INFO, "\t│\t└── Deadline: %s", deadline)
    log(INFO, "\t├──> Resume file: %s", strategy.resume or "none")
    log(INFO, "\t└──> Keys in records:")
    log(INFO, "\t\t├── Metrics weighted by: '%s'", strategy.weighted_by_key)
    log(INFO, "\t\t├── ArrayRecord key: '%s'", strategy.arrayrecord_key)
    log(INFO, "\t\t└── ConfigRecord key: '%s'", strategy.configrecord_key)


def log_sessions(strategy: ServerlessGossip) -> None:
    """Log the plan, and what sessions are like."""
    log(INFO, "\t├──> Gossip plan: %s", strategy.plan.describe())
    if strategy.compressor is not None:
        log(INFO, "\t├──> Models travel in: %s", strategy.compressor.name)
    log(INFO, "\t├──> Rounds in a session: %d", strategy.rounds_per_session)
    log(INFO, "\t├──> Models that leave their nodes for the server: %s", strategy.export or "none")
    insecure = strategy.settings.insecure
    log(
        WARNING if insecure else INFO,
        "\t└──> Links: %s",
        "CLEAR TEXT (insecure=True)" if insecure else "mutual TLS 1.3, pinned certificates",
    )


def _messages(strategy: HostedGossip) -> str:
    name = getattr(strategy.mixer, "__name__", repr(strategy.mixer))
    return f"{'fp32' if strategy.compressor is None else strategy.compressor.name}, mixed by {name}"


def _updates(strategy: HostedGossip) -> str:
    if not strategy.partial_updates:
        return "whole models"
    mixed = "all arrays are mixed" if strategy.mix_untrained else "trained arrays are mixed"
    return f"arrays that changed; {mixed}"
