"""Cheap training on a device: methods that change how layers compute their gradients, and nothing else."""

from flower_edge.training._tap_symbols import tap_symbols
from flower_edge.training.frozen_norm import FrozenNorm
from flower_edge.training.gradient_filter import GradientFilter
from flower_edge.training.layers import EdgeConv2d
from flower_edge.training.lean_activations import LeanActivations
from flower_edge.training.memory import SavedBytes, saved_bytes
from flower_edge.training.paths import LayerPath, Paths, explain
from flower_edge.training.prepare import prepare_, restore_
from flower_edge.training.rule import Method, ModelMethod, Rule
from flower_edge.training.where import all_but_stem, last

__all__ = [
    "EdgeConv2d",
    "FrozenNorm",
    "GradientFilter",
    "LayerPath",
    "LeanActivations",
    "Method",
    "ModelMethod",
    "Paths",
    "Rule",
    "SavedBytes",
    "all_but_stem",
    "explain",
    "last",
    "prepare_",
    "restore_",
    "saved_bytes",
    "tap_symbols",
]
