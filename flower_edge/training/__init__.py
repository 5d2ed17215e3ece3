"""Cheap training on a device: how layers compute their gradients, and which tensors are trained at all.

`profile` is the function here, ``from flower_edge.training import profile``; the module of that name is
reached by its full name alone, ``from flower_edge.training.profile import Profile``.
"""

from flower_edge.training._tap_symbols import tap_symbols
from flower_edge.training.backward_graph import BackwardGraph
from flower_edge.training.budget import Deadline, Energy, Memory, Time
from flower_edge.training.choice import Choice
from flower_edge.training.elastic import ElasticTrainer
from flower_edge.training.frozen_norm import FrozenNorm
from flower_edge.training.fused_norm import FusedNorm
from flower_edge.training.gradient_angle import GradientAngle, gradient_angle
from flower_edge.training.gradient_filter import GradientFilter
from flower_edge.training.int8 import Int8Training
from flower_edge.training.kept_profiles import kept_profile
from flower_edge.training.layers import EdgeConv2d, EdgeLinear, EdgeRangeEvoNorm
from flower_edge.training.lean_activations import LeanActivations
from flower_edge.training.memory import SavedBytes, saved_bytes
from flower_edge.training.paths import LayerPath, Paths, explain
from flower_edge.training.prepare import prepare_, restore_
from flower_edge.training.profile import Profile, profile
from flower_edge.training.pruning import PruningReport, Rising, pruning_report, resume_schedule_
from flower_edge.training.range_evonorm import RangeEvoNorm
from flower_edge.training.replace_batchnorm import replace_batchnorm_
from flower_edge.training.rule import Method, ModelMethod, Rule
from flower_edge.training.selection import BackwardBudget, Selection, select_tensors
from flower_edge.training.sign_feedback import SignFeedback
from flower_edge.training.where import all_but_stem, last
from flower_edge.training.window import SlidingWindow, blend

__all__ = [
    "BackwardBudget",
    "BackwardGraph",
    "Choice",
    "Deadline",
    "EdgeConv2d",
    "EdgeLinear",
    "EdgeRangeEvoNorm",
    "ElasticTrainer",
    "Energy",
    "FrozenNorm",
    "FusedNorm",
    "GradientAngle",
    "GradientFilter",
    "Int8Training",
    "LayerPath",
    "LeanActivations",
    "Memory",
    "Method",
    "ModelMethod",
    "Paths",
    "Profile",
    "PruningReport",
    "RangeEvoNorm",
    "Rising",
    "Rule",
    "SavedBytes",
    "Selection",
    "SignFeedback",
    "SlidingWindow",
    "Time",
    "all_but_stem",
    "blend",
    "explain",
    "gradient_angle",
    "kept_profile",
    "last",
    "prepare_",
    "profile",
    "pruning_report",
    "replace_batchnorm_",
    "restore_",
    "resume_schedule_",
    "saved_bytes",
    "select_tensors",
    "tap_symbols",
]
