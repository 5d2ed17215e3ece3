"""Serverless gossip learning and cheap on-device training for Flower.

Nothing is imported here: a node that only mixes does not pay for a solver, nor a planner for torch.
See `flower_edge.gossip`, `flower_edge.kernels`, `flower_edge.strategies` and `flower_edge.clients`.
"""

__version__ = "0.1.0"
