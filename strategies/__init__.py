"""Flower strategies without an average in the middle."""

from flower_edge.strategies.archive import CheckpointError
from flower_edge.strategies.binding import TooFewNodesError
from flower_edge.strategies.hosted_gossip import HostedGossip
from flower_edge.strategies.serverless_gossip import ServerlessGossip

__all__ = ["CheckpointError", "HostedGossip", "ServerlessGossip", "TooFewNodesError"]
