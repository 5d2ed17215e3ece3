"""Flower clients that train and take part in gossip."""

from flower_edge.clients.edge_client import edge_client_app
from flower_edge.clients.elastic import Elastic
from flower_edge.clients.gossip import gossip_mod

__all__ = ["Elastic", "edge_client_app", "gossip_mod"]
