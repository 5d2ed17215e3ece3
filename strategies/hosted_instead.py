"""What simulated nodes, which have no addresses, do in place of sessions."""

from __future__ import annotations

from logging import INFO, getLogger
from typing import TYPE_CHECKING

from flower_edge.strategies.hosted_gossip import HostedGossip

if TYPE_CHECKING:
    from flower_edge.strategies.serverless_gossip import ServerlessGossip

log = getLogger("flwr").log


def hosted_instead(strategy: ServerlessGossip) -> HostedGossip:
    """Return the strategy that hosts the gossip which another would leave to the nodes.

    Raises
    ------
    ValueError
        If the nodes would do what a host does not.
    """
    if strategy.overlap:
        raise ValueError(
            "overlap=True is for sessions between boards, and these simulated nodes are hosted, where a "
            "round trains with the mixed model: leave it out"
        )
    log(INFO, "These nodes are simulated and have no addresses: their gossip is hosted (HostedGossip)")
    resume = strategy.resume
    return HostedGossip(
        strategy.plan,
        min_nodes=strategy.min_nodes,
        fraction_evaluate=strategy.fraction_evaluate,
        evaluate_every=strategy.rounds_per_session,
        bind_by="partition-id",
        connect_timeout=strategy.connect_timeout,
        resume=None if resume is None else resume.with_name(resume.name + ".hosted"),
        mixer=strategy.mixer,
        compressor=strategy.compressor,
        weighted_by_key=strategy.weighted_by_key,
        arrayrecord_key=strategy.arrayrecord_key,
        configrecord_key=strategy.configrecord_key,
        train_metrics_aggr_fn=strategy.train_metrics_aggr_fn,
        evaluate_metrics_aggr_fn=strategy.evaluate_metrics_aggr_fn,
    )
