"""What a node does with its own examples: one round of training, or one evaluation."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sized
from statistics import median
from typing import TypeAlias

import torch
from flwr.app import MetricRecord
from torch import Tensor, nn

from flower_edge.training import gradient_angle, pruning_report, saved_bytes

Batches: TypeAlias = Iterable[tuple[Tensor, Tensor]]
BatchFunction: TypeAlias = Callable[[Tensor, Tensor], Tensor]


def train(
    net: nn.Module,
    batches: Batches,
    loss: BatchFunction,
    optimizer: torch.optim.Optimizer,
    epochs: int,
    device: torch.device,
    before_step: Callable[[tuple[Tensor, Tensor]], bool] = lambda batch: True,
) -> MetricRecord:
    """Train a model in place.

    Parameters
    ----------
    net : Module
        On `device`.
    batches : iterable of (Tensor, Tensor)
        Inputs and targets; iterated once an epoch.
    loss : callable
        ``(outputs, targets) -> Tensor``, the mean loss of a batch.
    optimizer : Optimizer
        Holds the parameters of `net`.
    epochs : int
        Passes over the batches.
    device : torch.device
        Where to compute.
    before_step : callable, optional
        Called with the batch of each step, on `device`; may change which parameters require gradients. If it
        returns False, the step is left out and training ends.

    Returns
    -------
    MetricRecord
        ``train_loss``
            Mean over all examples seen.
        ``num-examples``
            Examples of one epoch; of a mean epoch, if training ended early.
        ``step_time``
            *Measured*: seconds of a step, the median; without the loading of its batch.
        ``backward_share``
            *Measured*: share of a step's time that its backward pass takes, from 0 to 1, the median.
        ``saved_bytes``
            *Counted*: bytes that are held for the backward pass of the first batch. Takes two forward passes.

        And, if layers train by :class:`flower_edge.training.SignFeedback`:

        ``gradient_sparsity``
            *Counted*: share of zeros in the gradients that were pruned.
        ``skipped_macs``, ``skipped_share``
            *Counted*: multiply-accumulates of these layers' backward passes that were left out; their share.
        ``gradient_angle``
            *Measured*: degrees between the gradient of the first batch and the exact one. Takes two steps.

    Raises
    ------
    ValueError
        If there are no batches.
    """
    net.train()
    total, seen, saved = torch.zeros((), dtype=torch.float64), 0, 0
    prunes = bool(pruning_report(net).layers)
    angle = 0.0
    step_times: list[float] = []
    backward_shares: list[float] = []
    for inputs, targets in (batch for _ in range(epochs) for batch in batches):
        inputs, targets = inputs.to(device), targets.to(device)
        if not before_step((inputs, targets)):
            break
        if not step_times:
            # Before the first step, so that what layers try out on first use is in no step's time.
            saved = saved_bytes(net, (inputs, targets), loss).total
            if prunes:
                angle = gradient_angle(net, (inputs, targets), loss).degrees
        begin = _clock(device)
        optimizer.zero_grad()
        value = loss(net(inputs), targets)
        backward_begin = _clock(device)
        value.backward()  # type: ignore[no-untyped-call]
        backward_end = _clock(device)
        optimizer.step()
        step_times.append(_clock(device) - begin)
        backward_shares.append((backward_end - backward_begin) / step_times[-1])
        total += value.detach().cpu() * len(targets)
        seen += len(targets)
    if seen == 0:
        raise ValueError(f"no training examples in {epochs} epochs; check `data` and 'local-epochs'")
    report = MetricRecord(
        {
            "train_loss": float(total) / seen,
            "num-examples": max(1, seen // epochs),
            "step_time": median(step_times),
            "backward_share": median(backward_shares),
            "saved_bytes": saved,
        }
    )
    if prunes:
        pruned = pruning_report(net)
        report["gradient_sparsity"] = pruned.sparsity
        report["skipped_macs"] = pruned.skipped_macs
        report["skipped_share"] = pruned.skipped_share
        report["gradient_angle"] = angle
    return report


def step_count(batches: Batches, epochs: int) -> int | None:
    """Return how many steps `train` takes, None if the batches have no length."""
    return len(batches) * epochs if isinstance(batches, Sized) else None


def evaluate(
    net: nn.Module, batches: Batches, functions: Mapping[str, BatchFunction], device: torch.device
) -> MetricRecord:
    """Evaluate a model.

    Parameters
    ----------
    net : Module
        On `device`.
    batches : iterable of (Tensor, Tensor)
        Inputs and targets.
    functions : mapping of str to callable
        Each ``(outputs, targets) -> Tensor``, the mean over a batch.
    device : torch.device
        Where to compute.

    Returns
    -------
    MetricRecord
        The mean of each function over all examples, and ``num-examples``.

    Raises
    ------
    ValueError
        If there are no batches.
    """
    net.eval()
    totals, seen = dict.fromkeys(functions, 0.0), 0
    with torch.inference_mode():
        for inputs, targets in batches:
            outputs, targets = net(inputs.to(device)), targets.to(device)
            for name, function in functions.items():
                totals[name] += float(function(outputs, targets)) * len(targets)
            seen += len(targets)
    if seen == 0:
        raise ValueError("no test examples; check `data`")
    means = {name: total / seen for name, total in totals.items()}
    return MetricRecord({**means, "num-examples": seen})


def _clock(device: torch.device) -> float:
    """Return the time at which all that has been asked of the device is done."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter()
