"""Flower clients that train and take part in gossip."""

from flower_edge.clients.edge_client import edge_client_app

__all__ = ["edge_client_app"]
