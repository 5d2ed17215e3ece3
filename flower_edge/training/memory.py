"""How many bytes a forward pass holds for the backward pass."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import nn

from flower_edge.training._quantised_map import QuantisedMap


@dataclass(frozen=True)
class SavedBytes:
    """What one forward pass holds for the backward pass, counted.

    Attributes
    ----------
    total : int
        Bytes in all, each storage once.
    by_module : dict of str to int
        The same bytes by the innermost module whose forward pass first saved them, largest first; ``""`` is
        the model itself and the loss.
    """

    total: int
    by_module: dict[str, int]


def saved_bytes(
    model: nn.Module,
    batch: tuple[torch.Tensor, torch.Tensor],
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
) -> SavedBytes:
    """Count the bytes that autograd holds between the forward pass and the backward pass of one step.

    Every tensor that a backward formula saves is seen by ``torch.autograd.graph.saved_tensors_hooks``. A
    storage counts once and whole, however many views of it are saved. Parameters and buffers are there anyway
    and do not count; the batch does where the first layer saves it.

    Two forward passes run, in the model's present mode; the first lets layers that measure themselves settle.
    Buffers and the random generators are as before afterwards; gradients are not touched.

    Parameters
    ----------
    model : torch.nn.Module
        At least one parameter must require gradients.
    batch : tuple of torch.Tensor
        Inputs and targets.
    loss : callable
        ``loss(model(inputs), targets)`` is a scalar, for example ``torch.nn.functional.cross_entropy``.

    Returns
    -------
    SavedBytes
        In all, and by module.

    Raises
    ------
    ValueError
        If no parameter of the model requires gradients, so that nothing would be saved.
    """
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError("no parameter of the model requires gradients, expected at least one to train")
    inputs, targets = batch
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    # The storages themselves are kept: a freed one's address could come up again.
    found: dict[int, tuple[str, torch.UntypedStorage]] = {}
    running: list[str] = []

    def note(tensor: torch.Tensor) -> torch.Tensor:
        for storage in tensor.storages() if isinstance(tensor, QuantisedMap) else [tensor.untyped_storage()]:
            if storage.data_ptr() not in own:
                found.setdefault(storage.data_ptr(), (running[-1] if running else "", storage))
        return tensor

    with _unchanged(model), torch.enable_grad():
        loss(model(inputs), targets)
        with (
            _watched(model, running),
            torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
        ):
            loss(model(inputs), targets)
    by_module: dict[str, int] = {}
    for name, storage in found.values():
        by_module[name] = by_module.get(name, 0) + storage.nbytes()
    largest_first = sorted(by_module.items(), key=lambda item: -item[1])
    return SavedBytes(sum(by_module.values()), dict(largest_first))


@contextlib.contextmanager
def _unchanged(model: nn.Module) -> Iterator[None]:
    """Put buffers (statistics of a normalisation, say) and random generators back afterwards."""
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    devices = {parameter.device for parameter in model.parameters() if parameter.device.type == "cuda"}
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)


@contextlib.contextmanager
def _watched(model: nn.Module, running: list[str]) -> Iterator[None]:
    """Keep the names of the modules whose forward pass runs, outermost first, in `running`."""
    handles = []
    try:
        for name, module in model.named_modules():
            handles.append(module.register_forward_pre_hook(lambda *_, name=name: running.append(name)))
            handles.append(module.register_forward_hook(lambda *_: _left(running), always_call=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _left(running: list[str]) -> None:
    running.pop()
