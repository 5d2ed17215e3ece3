"""Elastic training: any tensor joins or leaves training at run time, under a budget."""

import warnings
from collections.abc import Collection, Mapping, MutableMapping, Sequence
from typing import Any, Literal

from torch import nn
from torch.optim import Optimizer

from flower_edge.training._checks import check_batch, check_hooks, check_optimizer, check_trainable
from flower_edge.training._probe import importances
from flower_edge.training._recorder import Loss, clock
from flower_edge.training._untouched import untouched
from flower_edge.training.backward_graph import BackwardGraph
from flower_edge.training.budget import Budget, Energy, check_budgets, limits
from flower_edge.training.choice import Choice, select_or_head
from flower_edge.training.on_return import OnReturn, check_on_return, come_back
from flower_edge.training.profile import Profile
from flower_edge.training.profile import profile as measured_profile
from flower_edge.training.units import layer_units


class ElasticTrainer:
    r"""Choose, again and again, which tensors of a model are trained, as many as a budget allows.

    Huang, Yang, Gao, "ElasticTrainer: Speeding Up On-Device Training with Runtime Elastic Tensor Selection",
    MobiSys 2023. The importance of tensor k is what its next update takes off the loss, to first order,
    :math:`I_k = -\sum g_k \cdot \Delta w_k`, with the optimizer's own update :math:`\Delta w_k`.
    The chosen set maximises the sum of importances within the budgets. Where the paper rounds times to a grid
    and takes the network for a chain, here the choice is exact, on the graph that :func:`profile`
    measured (:func:`select_tensors`).

    You train as you are used to; between two steps, call `select` with a batch::

        trainer = ElasticTrainer(model, optimizer, cross_entropy, Time(0.5))
        for step, (x, y) in enumerate(batches):
            if step % 100 == 0:
                trainer.select((x, y))
            optimizer.zero_grad()
            cross_entropy(model(x), y).backward()
            optimizer.step()

    A tensor that is not chosen has no gradient (``requires_grad`` is off, ``grad`` None), so neither momentum
    nor weight decay moves it, and activations that only it needs are not kept. Running statistics of
    normalisations go on as they do for frozen layers. Parameters that required no gradient when the trainer
    was made are never trained.

    Parameters
    ----------
    model : Module
        Any that :func:`profile` can take.
    optimizer : Optimizer
        Of torch's interface. Holds every parameter of the model that requires a gradient, steps after the
        backward pass, and moves each tensor by that tensor's gradient and state alone; all of `torch.optim`
        but LBFGS do.
    loss : callable
        ``loss(model(inputs), targets)`` is a finite scalar.
    budget : Time, Memory, Energy, Deadline, or a sequence of them
        What a step may cost; several hold at once.
    units : {"tensors", "layers"}, default "tensors"
        What joins or leaves as one. "layers": the tensors of a convolution or linear layer, and of the
        normalisation that directly follows it.
    on_return : {"keep", "drop"} or float, default "keep"
        What becomes of a tensor's optimizer state. "keep": it is as it was when the tensor comes back. A
        float in [0, 1): momentum (of SGD and RMSprop, Adam's first moments) is multiplied by it then, while
        second moments and step counts stay. "drop": the state is thrown away when the tensor leaves, which
        frees its memory, and begins anew.
    profile : Profile, optional
        Of the model with these trainable parameters; that of another board makes its times count. Default:
        measured here, with the first batch.
    slowdown : float, default 1.0
        This device takes the profile's times that many times over: to simulate a slower board.

    Raises
    ------
    TypeError
        If a budget is none.
    ValueError
        If the model has no trainable tensor, the optimizer does not hold one, a parameter has a hook that
        steps in the backward pass, the profile is of another model or of other trainable parameters, or a
        value is out of its range.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        loss: Loss,
        budget: Budget | Sequence[Budget],
        *,
        units: Literal["tensors", "layers"] = "tensors",
        on_return: OnReturn = "keep",
        profile: Profile | None = None,
        slowdown: float = 1.0,
    ) -> None:
        parameters = dict(model.named_parameters())
        check_trainable(parameters)
        check_hooks(parameters)
        check_optimizer(optimizer, parameters)
        if units not in ("tensors", "layers"):
            raise ValueError(f"units is {units!r}, expected 'tensors' or 'layers'")
        if not 0 < slowdown < float("inf"):
            raise ValueError(f"slowdown is {slowdown}, expected a finite number of more than 0")
        self.model = model
        self.optimizer = optimizer
        self.budgets = check_budgets(budget)
        self.slowdown = slowdown
        self.trainable = tuple(name for name, parameter in parameters.items() if parameter.requires_grad)
        self._loss = loss
        self._by_layer = units == "layers"
        self._on_return = check_on_return(on_return)
        self._away: set[str] = set()
        self._choice: Choice | None = None
        self._warned = False
        self._profile: Profile | None = None
        self._unchecked: Profile | None = None
        self._units: tuple[tuple[str, ...], ...] = ()
        if profile is not None:
            self._take(profile)
            self._unchecked = profile

    @property
    def choice(self) -> Choice | None:
        """The choice that is trained; None before the first and after `release`."""
        return self._choice

    @property
    def profile(self) -> Profile:
        """What each operation costs.

        Raises
        ------
        RuntimeError
            If none was given and no batch has been seen.
        """
        if self._profile is None:
            raise RuntimeError(
                "the model has not been profiled yet: call measure or select with a batch first"
            )
        return self._profile

    @property
    def graph(self) -> BackwardGraph:
        """The costs of the profile as a function of the tensors that are trained.

        Raises
        ------
        RuntimeError
            As `profile`.
        """
        return self.profile.graph

    @property
    def units(self) -> tuple[tuple[str, ...], ...]:
        """What joins or leaves as one, in the order of the forward pass.

        Raises
        ------
        RuntimeError
            As `profile`.
        """
        if not self._by_layer:
            return tuple((name,) for name in self.graph.tensor_names)
        if not self._units:
            self._units = layer_units(self.profile)
        return self._units

    def measure(self, batch: tuple[Any, Any]) -> Profile:
        """Return the profile, and measure it if there is none yet: some tens of steps.

        Parameters
        ----------
        batch : tuple of (inputs, targets)
            As it is trained with.

        Returns
        -------
        Profile

        Raises
        ------
        ValueError
            If the model is in evaluation mode, or cannot be profiled, as :func:`profile` says.
        """
        self._check_ready(batch)
        if self._profile is None:
            with untouched(self.model):
                for name, parameter in self.model.named_parameters():
                    parameter.requires_grad_(name in self.trainable)
                self._take(measured_profile(self.model, batch, self._loss, optimizer=self.optimizer))
        return self.profile

    def importance(self, batch: tuple[Any, Any]) -> dict[str, float]:
        r"""Return how much the next update of each tensor would take off the loss, to first order.

        :math:`I_k = -\sum g_k \cdot \Delta w_k`: one forward and backward pass through the whole model in its
        present mode, and the optimizer's step on a copy of one tensor after the other, with the present
        learning rate, momentum and weight decay. Model, buffers, gradients, optimizer and random states are
        bit for bit as before. For a moment, activations and gradients of training everything are held: where
        these do not fit, give a smaller batch, and `select` the result.

        Parameters
        ----------
        batch : tuple of (inputs, targets)

        Returns
        -------
        dict of str to float
            By name, for each tensor of the profile. With an optimizer that maximises, what is added.

        Raises
        ------
        ValueError
            If the model is in evaluation mode, the loss is not a finite scalar, the gradient or the update of
            a tensor is not finite (the message names it), or the profile is of a model that makes other
            calls or trains other tensors.
        """
        self.measure(batch)
        found = importances(
            self.model,
            batch,
            self._loss,
            self.optimizer,
            self.trainable,
            self._as_before_its_next_step,
            self._unchecked,
        )
        self._unchecked = None
        unknown = found.keys() - self.graph.readers.keys()
        if unknown:
            raise ValueError(
                f"tensor {min(unknown)!r} has a gradient and is not in the profile, expected the profile of "
                "this model with the same batch and trainable parameters: profile it again"
            )
        # A tensor may get no gradient with this batch, if the model branches.
        return {name: found.get(name, 0.0) for name in self.graph.tensor_names}

    def select(
        self,
        batch: tuple[Any, Any],
        *,
        among: Collection[str] | None = None,
        importance: Mapping[str, float] | None = None,
        budget: Budget | Sequence[Budget] | None = None,
    ) -> Choice:
        """Choose the tensors to train from now on, and let them alone require gradients.

        If nothing that is worth training fits the budgets, the head is trained in spite of them: the tensors
        of the last operation that reads any which no earlier one does. `Choice.note` says so, and a warning
        does the first time.

        Parameters
        ----------
        batch : tuple of (inputs, targets)
            As it is trained with.
        among : collection of str, optional
            The tensors that may be chosen; default all. A unit may be if all of it may.
        importance : mapping of str to float, optional
            Of every tensor that may be chosen, instead of the probe's.
        budget : Time, Memory, Energy, Deadline, or a sequence of them, optional
            For this choice alone; default the trainer's.

        Returns
        -------
        Choice

        Raises
        ------
        TypeError
            If a budget is none.
        ValueError
            As `importance` and `measure`; or if a name is unknown, or an importance missing or not finite.
            The model is as before then.
        """
        budgets = self.budgets if budget is None else check_budgets(budget)
        self.measure(batch)
        allowed = self._allowed(among)
        bounds = limits(budgets, self.profile, self.slowdown)
        units = self.units
        begun = clock()
        known = self.importance(batch) if importance is None else self._given(importance, allowed)
        probed = clock()
        worth = {name: known[name] if name in allowed else 0.0 for name in self.graph.tensor_names}
        selection = select_or_head(self.graph, worth, bounds.backward, units)
        solved = clock()
        choice = Choice(
            importance=known,
            selection=selection,
            forward_seconds=self.slowdown * self.profile.forward_seconds,
            backward_seconds=self.slowdown * selection.cost.seconds,
            optimizer_seconds=self.slowdown * self.profile.optimizer_seconds,
            full_backward_seconds=self.slowdown * self.graph.full_cost.seconds,
            watts=max((limit.watts for limit in budgets if isinstance(limit, Energy)), default=None),
            limits=tuple(bounds.named[what] for what in selection.limits),
            note="; ".join(filter(None, (bounds.note if selection.head_only else "", selection.note))),
            probe_seconds=0.0 if importance is not None else probed - begun,
            solve_seconds=solved - probed,
        )
        self._train(frozenset(choice.names))
        self._choice = choice
        if choice.head_only and not self._warned:
            self._warned = True
            warnings.warn(choice.note, stacklevel=2)
        return choice

    def release(self) -> None:
        """Let every tensor be trained that was when the trainer was made."""
        self._train(frozenset(self.trainable))
        self._choice = None

    def _check_ready(self, batch: Any) -> None:
        check_batch(batch)
        check_hooks(dict(self.model.named_parameters()))
        if not self.model.training:
            raise ValueError(
                "the model is in evaluation mode, expected training mode, whose gradients and times count: "
                "call model.train(), and put single modules into evaluation mode if you need to"
            )

    def _take(self, profile: Profile) -> None:
        profile.check(self.model)
        for tensor in profile.tensors:
            if tensor.name not in self.trainable:
                raise ValueError(
                    f"the profile trains {tensor.name!r}, which required no gradient when the trainer was "
                    "made, expected a profile with the same trainable parameters: profile the model again"
                )
        self._profile = profile

    def _candidates(self) -> dict[str, nn.Parameter]:
        return {name: self.model.get_parameter(name) for name in self.trainable}

    def _as_before_its_next_step(self, name: str, state: MutableMapping[str, Any]) -> None:
        if name in self._away:
            come_back(state, self._on_return)

    def _allowed(self, among: Collection[str] | None) -> frozenset[str]:
        if among is None:
            return frozenset(self.graph.tensor_names)
        if isinstance(among, str):
            raise TypeError(f"among is {among!r}, expected a collection of names such as a list")
        unknown = sorted(frozenset(among) - self.graph.readers.keys())
        if unknown:
            raise ValueError(f"among names {unknown[0]!r}, expected trainable tensors of the model")
        named = frozenset(among)
        return frozenset(name for unit in self.units if named.issuperset(unit) for name in unit)

    def _given(self, importance: Mapping[str, float], allowed: frozenset[str]) -> dict[str, float]:
        unknown = sorted(importance.keys() - self.graph.readers.keys())
        if unknown:
            raise ValueError(
                f"the importance of {unknown[0]!r} was given, expected trainable tensors of the model alone"
            )
        missing = sorted(allowed - importance.keys())
        if missing:
            raise ValueError(f"the importance of {missing[0]!r} is missing, expected that of every tensor")
        return {name: float(importance[name]) for name in self.graph.tensor_names if name in importance}

    def _train(self, names: frozenset[str]) -> None:
        """Let `names` alone require gradients; treat the optimizer's state of those that come or go."""
        for name, parameter in self._candidates().items():
            trained = name in names
            if trained and name in self._away:
                come_back(self.optimizer.state.get(parameter, {}), self._on_return)
            elif not trained:
                parameter.grad = None
                if self._on_return == "drop":
                    self.optimizer.state.pop(parameter, None)
            parameter.requires_grad_(trained)
        self._away = set(self.trainable) - names
