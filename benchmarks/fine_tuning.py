"""The accuracy protocol of all training methods: a pre-trained network learns all ten classes of CIFAR-10.

Everything that a method does not decide (images, their augmentation and order, the split over nodes, the new
classes' part of the head) follows from the seed alone, and every method has the same budget.
"""

import copy
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.cifar import Images, augmented, dirichlet_split, normalised
from flower_edge.gossip import GossipPlan

Batches: TypeAlias = list[tuple[Tensor, Tensor]]
Change: TypeAlias = Callable[[nn.Module], object]
"""What a method does to a model, in place."""
BeforeStep: TypeAlias = Callable[[int, tuple[Tensor, Tensor]], object]
"""What a method does before a step, given its number and its batch."""


@dataclass(frozen=True)
class Budget:
    """What one run may use: SGD with momentum, with a rate that rises over a tenth of it and falls to zero.

    Attributes
    ----------
    images : int, default 10_000
        Different images of the training set.
    epochs : int, default 3
        Passes over them.
    batch : int, default 64
        Images a step, of one node alone or of all nodes together.
    rate : float, default 0.05
        Highest learning rate.
    momentum, weight_decay : float
        Of SGD.
    test_images : int, default 10_000
        Images that the accuracy is measured on.
    """

    images: int = 10_000
    epochs: int = 3
    batch: int = 64
    rate: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 5e-4
    test_images: int = 10_000

    @property
    def steps(self) -> int:
        """Steps of the whole run."""
        return self.epochs * (self.images // self.batch)

    def rate_at(self, step: int) -> float:
        """Learning rate of a step."""
        rise = max(1, self.steps // 10)
        if step < rise:
            return self.rate * (step + 1) / rise
        return self.rate * 0.5 * (1 + math.cos(math.pi * (step - rise) / (self.steps - rise)))


class FineTuning:
    """What all methods share for one network, one choice of trained layers and one seed.

    The parameters from the first chosen convolution on are trained; what comes before is frozen, its
    normalisation uses its running statistics, and it therefore runs only once for all methods.

    Parameters
    ----------
    model : Module
        The pre-trained network; not changed.
    blocks : callable
        Gives the modules that, one after the other, are a network.
    first : str or None
        Name of the first convolution that is trained; None trains everything.
    train, test : Images
        Of all ten classes.
    budget : Budget
        What each run may use.
    seed : int
        Of everything random.
    nodes : int, default 1
        Nodes that the training images are dealt out to with Dirichlet(0.5) label skew.
    device : str, default "cpu"
        Where all methods train. What is drawn at random does not depend on it.
    """

    def __init__(
        self,
        model: nn.Module,
        blocks: Callable[[nn.Module], list[nn.Module]],
        first: str | None,
        train: Images,
        test: Images,
        budget: Budget,
        seed: int,
        nodes: int = 1,
        device: str = "cpu",
    ) -> None:
        self.budget, self.nodes = budget, nodes
        model = copy.deepcopy(model).to(device)
        parts = blocks(model)
        frozen = _frozen(model, first)
        for module in frozen:
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(False)
        cut = next(i for i, part in enumerate(parts) if any(p.requires_grad for p in part.parameters()))
        stem, self._tail = nn.Sequential(*parts[:cut]).eval(), nn.Sequential(*parts[cut:])
        self._frozen = [i for i, module in enumerate(self._tail.modules()) if module in frozen]
        images = train.sample(budget.images, seed)
        with torch.no_grad():
            self.batches = _through(stem, _drawn(images, budget, seed, nodes), device)
            self.tests = _through(stem, test.sample(budget.test_images, seed).batches(500), device)

    def model(self, change: Change) -> nn.Module:
        """Return the trained part of the network as a method starts with it."""
        tail = copy.deepcopy(self._tail)
        change(tail)
        return tail

    def alone(
        self, change: Change, watched: Callable[[nn.Module, torch.optim.SGD], BeforeStep] | None = None
    ) -> float:
        """Train on one node; return the share of test images that it gets right.

        Parameters
        ----------
        change : callable
            Done to the model once, at the start.
        watched : callable, optional
            Given the model and its optimizer, returns what is done before each step, its learning rate being
            set already.
        """
        model = self.model(change)
        optimizer = self.optimizer(model)
        self._train_mode(model)
        before_step = watched(model, optimizer) if watched else lambda step, batch: None
        for step, (x, y) in enumerate(self.batches):
            self._set_rate(optimizer, step)
            before_step(step, (x, y))
            self._step(model, optimizer, x, y)
        return self.accuracy(model)

    def gossip(self, change: Change, plan: GossipPlan) -> float:
        """Train by D-PSGD, each node with its own momentum; return the mean accuracy of the nodes' models.

        Running statistics of normalisation layers are mixed as parameters are; what is frozen is the same on
        all nodes.
        """
        models = [self.model(change) for _ in range(self.nodes)]
        optimizers = [self.optimizer(model) for model in models]
        shared = [_mixed_tensors(model) for model in models]
        for model in models:
            self._train_mode(model)
        for step, (x, y) in enumerate(self.batches):
            parts = zip(models, optimizers, x.chunk(self.nodes), y.chunk(self.nodes), strict=True)
            for model, optimizer, own_x, own_y in parts:
                self._set_rate(optimizer, step)
                self._step(model, optimizer, own_x, own_y)
            mix(shared, plan.matrix(step).toarray())
        return float(np.mean([self.accuracy(model) for model in models]))

    def accuracy(self, model: nn.Module) -> float:
        """Return the share of test images that a model gets right."""
        model.eval()
        with torch.inference_mode():
            right = sum(int((model(x).argmax(1) == y).sum()) for x, y in self.tests)
        return right / sum(len(y) for _, y in self.tests)

    def _train_mode(self, model: nn.Module) -> None:
        model.train()
        modules = list(model.modules())
        for i in self._frozen:
            modules[i].training = False

    def optimizer(self, model: nn.Module) -> torch.optim.SGD:
        """Return what trains the parameters of a model that require gradients."""
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        return torch.optim.SGD(
            trained,
            self.budget.rate,
            momentum=self.budget.momentum,
            weight_decay=self.budget.weight_decay,
        )

    def _set_rate(self, optimizer: torch.optim.SGD, step: int) -> None:
        for group in optimizer.param_groups:
            group["lr"] = self.budget.rate_at(step)

    def _step(self, model: nn.Module, optimizer: torch.optim.SGD, x: Tensor, y: Tensor) -> None:
        optimizer.zero_grad()
        torch.autograd.backward(cross_entropy(model(x), y))
        optimizer.step()


def _frozen(model: nn.Module, first: str | None) -> set[nn.Module]:
    """Return the modules before the first trained one that have parameters of their own."""
    own = [(name, module) for name, module in model.named_modules() if not list(module.children())]
    if first is None:
        return set()
    names = [name for name, _ in own]
    if first not in names:
        raise ValueError(f"first is {first!r}, expected a layer of the network: {', '.join(names)}")
    return {module for _, module in own[: names.index(first)]}


def _through(stem: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], device: str) -> Batches:
    return [(stem(x.to(device)), y.to(device)) for x, y in batches]


def _drawn(images: Images, budget: Budget, seed: int, nodes: int) -> Batches:
    """Draw all batches of a run; with several nodes, each draws its equal share from what it owns."""
    generator = torch.Generator().manual_seed(seed)
    if nodes == 1:
        return [batch for _ in range(budget.epochs) for batch in images.shuffled(budget.batch, generator)]
    owned = [torch.from_numpy(rows) for rows in dirichlet_split(images.labels, nodes, 0.5, seed)]
    batches = []
    for _ in range(budget.steps):
        picks = [
            rows[torch.randint(len(rows), (budget.batch // nodes,), generator=generator)] for rows in owned
        ]
        rows = torch.cat(picks)
        batches.append((normalised(augmented(images.pixels[rows], generator)), images.labels[rows]))
    return batches


def _mixed_tensors(model: nn.Module) -> list[Tensor]:
    buffers = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
    return [p.detach() for p in model.parameters() if p.requires_grad] + buffers


def mix(fleet: Sequence[Sequence[Tensor]], matrix: np.ndarray) -> None:
    """Replace every node's tensors with their weighted means over the nodes, in place."""
    weights = torch.from_numpy(matrix).float()
    for copies in zip(*fleet, strict=True):
        stacked = torch.stack(list(copies))
        for own, mixed in zip(copies, torch.tensordot(weights.to(stacked.device), stacked, 1), strict=True):
            own.copy_(mixed)
