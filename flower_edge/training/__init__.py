"""Cheap training on a device: methods that change how layers compute their gradients, and nothing else."""

from flower_edge.training._tap_symbols import tap_symbols
from flower_edge.training.gradient_filter import GradientFilter
from flower_edge.training.layers import EdgeConv2d
from flower_edge.training.paths import LayerPath, Paths, explain
from flower_edge.training.prepare import prepare_, restore_
from flower_edge.training.rule import Method, Rule
from flower_edge.training.where import all_but_stem, last

__all__ = [
    "EdgeConv2d",
    "GradientFilter",
    "LayerPath",
    "Method",
    "Paths",
    "Rule",
    "all_but_stem",
    "explain",
    "last",
    "prepare_",
    "restore_",
    "tap_symbols",
]
