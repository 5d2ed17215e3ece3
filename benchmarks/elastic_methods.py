"""Ways to choose what is trained within a share of the backward time: elastic training and others."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.fine_tuning import BeforeStep
from benchmarks.published_selection import published_selection
from flower_edge.training import ElasticTrainer, Profile, Time
from flower_edge.training.backward_graph import BackwardGraph

Kind = Literal["full", "last layer", "norm + bias", "last k", "published", "ours"]

TRACKED: tuple[Kind, ...] = ("published", "ours")
"""Kinds that choose anew every interval, by importance."""


@dataclass(frozen=True)
class Method:
    """A way to choose, and the share of the full backward time that the choice may take.

    `norm + bias` trains scales, shifts, biases and the head (Cai, Gan, Zhu, Han, "TinyTL", NeurIPS 2020,
    train biases and the head). It and `last k` reach as far in from the output as the share allows.
    """

    kind: Kind
    share: float = 1.0

    def __str__(self) -> str:
        return self.kind if self.share == 1 else f"{self.kind}, ρ = {self.share}"


def share_of(graph: BackwardGraph, names: Collection[str]) -> float:
    """Return the backward time of training `names` as a share of that of training everything; predicted."""
    return graph.cost(names).seconds / graph.full_cost.seconds


def fixed_choice(method: Method, graph: BackwardGraph, model: nn.Module) -> tuple[str, ...]:
    """Return the tensors that a method trains which chooses once.

    Raises
    ------
    ValueError
        If the method chooses by importance.
    """
    names = graph.tensor_names
    (head,) = {name.rpartition(".")[0] for name in names[-1:]}
    candidates = {
        "full": names,
        "last k": names,
        "last layer": tuple(name for name in names if name.rpartition(".")[0] == head),
        "norm + bias": tuple(
            name for name in names if model.get_parameter(name).ndim == 1 or name.rpartition(".")[0] == head
        ),
    }
    if method.kind not in candidates:
        raise ValueError(f"{method} chooses by importance, expected one of {', '.join(candidates)}")
    return _deepest_within(graph, candidates[method.kind], method.share)


def _deepest_within(graph: BackwardGraph, names: Sequence[str], share: float) -> tuple[str, ...]:
    # Each further tensor costs more, so the first one that is too much ends it.
    fitting: tuple[str, ...] = ()
    for first in range(len(names) - 1, -1, -1):
        if share_of(graph, names[first:]) > share * (1 + 1e-9):
            break
        fitting = tuple(names[first:])
    return fitting


def choosing(
    method: Method, profile: Profile, every: int, chosen: list[tuple[str, ...]]
) -> Callable[[nn.Module, torch.optim.SGD], BeforeStep]:
    """Return what applies a method to a run of `benchmarks.fine_tuning`.

    Parameters
    ----------
    method : Method
    profile : Profile
        Of the model, with the batches of the run.
    every : int
        Steps of an interval; methods of one choice make it at the start.
    chosen : list of tuple of str
        Every choice is added to it.
    """

    def watched(model: nn.Module, optimizer: torch.optim.SGD) -> BeforeStep:
        trainer = ElasticTrainer(model, optimizer, cross_entropy, Time(method.share), profile=profile)

        def before_step(step: int, batch: tuple[Tensor, Tensor]) -> None:
            if step % every == 0 and (step == 0 or method.kind in TRACKED):
                chosen.append(choose(trainer, method, batch))

        return before_step

    return watched


def choose(trainer: ElasticTrainer, method: Method, batch: tuple[Tensor, Tensor]) -> tuple[str, ...]:
    """Let a method choose, and train that."""
    graph = trainer.profile.graph
    if method.kind == "ours":
        return trainer.select(batch).names
    if method.kind == "published":
        importance = trainer.importance(batch)
        names = published_selection(graph, importance, method.share * graph.full_cost.seconds)
    else:
        names = fixed_choice(method, graph, trainer.model)
    train_only(trainer.model, names)
    return names


def train_only(model: nn.Module, names: Collection[str]) -> None:
    """Let the parameters `names` be trained and no others, as `ElasticTrainer` does.

    Without a gradient, the optimizer leaves a parameter alone, momentum and weight decay included.
    """
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names)
        if name not in names:
            parameter.grad = None
