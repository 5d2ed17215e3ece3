"""One run of decentralised training in low precision: ResNet-20 learns CIFAR-10 on all nodes of a gossip.

Everything that a run's arithmetic, normalisation and exchange do not decide (the split, the batches, the
initial weights) follows from its seed, its skew and its number of nodes.
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.cifar import CLASSES, Images, augmented, label_split, normalised
from benchmarks.evonorm import replace_range_evonorm_
from benchmarks.fine_tuning import Budget
from benchmarks.networks import resnet20
from benchmarks.pretrain import accuracy, channels_last
from flower_edge.gossip import (
    DPSGD,
    ChocoSGD,
    GossipPlan,
    Int4,
    Int8,
    LinkChoco,
    Mixer,
    TopK,
    UnicastEnergy,
    complete,
    full_graph_plan,
    optimize,
    ring,
)
from flower_edge.gossip.compressor import Compressor
from flower_edge.strategies.fleet import Fleet
from flower_edge.training import Int8Training, prepare_, replace_batchnorm_

Topology: TypeAlias = Literal["ring", "optimised"]
Norm: TypeAlias = Literal["BatchNorm", "EvoNorm", "Range-EvoNorm"]

ARITHMETICS: dict[str, Int8Training | None] = {
    "fp32": None,
    # Measured fall-backs would make what is trained depend on the machine.
    "int8": Int8Training(error_bits=16, fallback="never"),
}
EXCHANGES: dict[str, Compressor | None] = {
    "fp32": None,
    "int8 CHOCO": Int8(),
    "int4 CHOCO": Int4(),
    "top-k CHOCO": TopK(0.1),
}


@dataclass(frozen=True)
class Run:
    """What a run is, but for its budget.

    Attributes
    ----------
    skew : float
        The share of the images that is dealt out by label.
    norm, arithmetic, exchange : str
        How nodes normalise and compute, and what they send.
    topology : str
        A ring, or an optimised plan for nodes that can all reach each other.
    nodes, seed : int
    """

    skew: float
    norm: Norm
    arithmetic: str
    exchange: str
    topology: Topology
    nodes: int
    seed: int


@dataclass(frozen=True)
class Outcome:
    """What a run ends with.

    Attributes
    ----------
    consensus : float
        Accuracy of the mean of all models, 0 to 1.
    nodes : float
        Mean accuracy of the nodes' own models.
    megabytes : float
        Sent by a node in the whole run, mean over the nodes; counted at the codec.
    """

    consensus: float
    nodes: float
    megabytes: float


@cache
def plan_of(topology: Topology, nodes: int) -> GossipPlan:
    """Return how the nodes mix.

    A ring has the weights of least ρ. The optimised plan is what `optimize` makes of a complete graph where
    training may take no more rounds than with all links.
    """
    if topology == "ring":
        return full_graph_plan(ring(nodes), weights="fastest")
    # As in `benchmarks.gossip_energy`: computing costs 0.3 of an exchange over a link.
    return optimize(complete(nodes), UnicastEnergy(0.3, send=0.5, receive=0.5), max_slowdown=1.0)


def network(norm: Norm, seed: int) -> nn.Module:
    """Return the network that all nodes begin with."""
    torch.manual_seed(seed)
    model = resnet20(CLASSES)
    if norm != "BatchNorm":
        replace_batchnorm_(model)
    if norm == "EvoNorm":
        replace_range_evonorm_(model)
    return channels_last(model)


def mixer_of(run: Run) -> Callable[..., Mixer[Any]]:
    """Return what makes a node's mixer."""
    if EXCHANGES[run.exchange] is None:
        return DPSGD
    return ChocoSGD if len(plan_of(run.topology, run.nodes).phases) == 1 else LinkChoco


def batches(images: Images, run: Run, budget: Budget) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Yield the batches of all nodes for each step; each draws its equal share from what it owns."""
    generator = torch.Generator().manual_seed(run.seed)
    owned = [torch.from_numpy(rows) for rows in label_split(images.labels, run.nodes, run.skew, run.seed)]
    each = budget.batch // run.nodes
    for _ in range(budget.steps):
        picks = [rows[torch.randint(len(rows), (each,), generator=generator)] for rows in owned]
        yield [(normalised(augmented(images.pixels[rows], generator)), images.labels[rows]) for rows in picks]


def train(run: Run, budget: Budget, images: Images, test: Images) -> Outcome:
    """Train by local steps of SGD with momentum, each followed by an exchange.

    Parameters
    ----------
    run : Run
        What to train.
    budget : Budget
        Its batch is that of all nodes together.
    images, test : Images
        Of all classes.
    """
    first = network(run.norm, run.seed)
    models = [copy.deepcopy(first) for _ in range(run.nodes)]
    method = ARITHMETICS[run.arithmetic]
    if method is not None:
        for model in models:
            prepare_(model, method)
    optimizers = [
        torch.optim.SGD(
            model.parameters(), budget.rate, momentum=budget.momentum, weight_decay=budget.weight_decay
        )
        for model in models
    ]
    plan, compressor = plan_of(run.topology, run.nodes), EXCHANGES[run.exchange]
    fleet = Fleet(plan, first.state_dict(), mixer_of(run), compressor)
    sent = np.zeros(run.nodes)
    drawn = images.sample(budget.images, run.seed)
    for step, parts in enumerate(batches(drawn, run, budget)):
        for node, (model, optimizer, (x, y)) in enumerate(zip(models, optimizers, parts, strict=True)):
            for group in optimizer.param_groups:
                group["lr"] = budget.rate_at(step)
            optimizer.zero_grad()
            torch.autograd.backward(cross_entropy(model(x), y))
            optimizer.step()
            fleet.update(node, model.state_dict())
        fleet.mix(step, range(run.nodes))
        sent += fleet.sent
        for node, model in enumerate(models):
            model.load_state_dict(fleet.layout.unflatten_torch(fleet.models[node], fleet.carried[node]))
    tests = test.sample(budget.test_images, run.seed)
    own = float(np.mean([accuracy(model, tests) for model in models]))
    models[0].load_state_dict(fleet.layout.unflatten_torch(fleet.mean(), fleet.carried[0]))
    return Outcome(accuracy(models[0], tests), own, float(sent.mean()) / 1e6)
