"""Whether a layer's filtered backward pass is faster than its exact one, by the clock."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from flower_edge.training import _ops

if TYPE_CHECKING:
    from flower_edge.training._filtered_conv import ConvFilter

_ENOUGH_SECONDS = 0.1
_MOST_REPEATS = 7
# The first touches fresh memory, which later steps do not.
_LEAST_REPEATS = 2


@dataclass(frozen=True)
class Measurement:
    """Seconds that both paths take for one layer, the least of a few repeats.

    Attributes
    ----------
    exact_seconds : float
        Torch's backward pass of the convolution.
    filtered_seconds : float
        Sums over patches in the forward pass, and the filtered backward pass.
    """

    exact_seconds: float
    filtered_seconds: float

    @property
    def exact_is_faster(self) -> bool:
        """Tell whether filtering does not pay."""
        return self.exact_seconds < self.filtered_seconds


_known: dict[tuple[object, ...], Measurement] = {}


def measured(x: Tensor, weight: Tensor, conv: "ConvFilter") -> Measurement | None:
    """Measure both paths on the tensors of a training step, or look up what an equal layer has shown before.

    Parameters
    ----------
    x : Tensor
        Input, shape ``(N, C_in, H, W)``; it tells whether its gradient is wanted.
    weight : Tensor
        Weight, likewise.
    conv : ConvFilter
        The convolution.

    Returns
    -------
    Measurement or None
        None for tensors that hold no data, as in a tracer.
    """
    key = (
        *(tuple(x.shape), tuple(weight.shape), conv, x.requires_grad, weight.requires_grad),
        *(_ops.is_channels_last(x), _ops.is_channels_last(weight), x.dtype, x.device),
        *(torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()),
    )
    if key not in _known:
        if type(x) not in (Tensor, torch.nn.Parameter) or x.is_meta:
            return None
        _known[key] = _measure(x, weight, conv)
    return _known[key]


def _measure(x: Tensor, weight: Tensor, conv: "ConvFilter") -> Measurement:
    needs = [x.requires_grad, weight.requires_grad, False]
    with torch.no_grad():
        # Values do not matter to the clock, layouts do: the output stands in for its gradient.
        grad = torch.conv2d(x, weight, None, *conv[:4])
        channels_last = _ops.is_channels_last(grad)

        def exact() -> object:
            return torch.ops.aten.convolution_backward(
                grad, x, weight, None, *conv[:3], False, [0, 0], conv.groups, needs
            )

        def filtered() -> object:
            sums = _ops.patch_sums(x, grad.shape, weight.shape, conv) if needs[1] else None
            return _ops.backward(grad, weight, sums, x.shape, conv, channels_last, needs[0])

        times: list[tuple[float, float]] = []
        spent = 0.0
        while len(times) < _LEAST_REPEATS or (spent < _ENOUGH_SECONDS and len(times) < _MOST_REPEATS):
            times.append((_seconds(exact, x.device), _seconds(filtered, x.device)))
            spent += sum(times[-1])
    return Measurement(*(min(repeats) for repeats in zip(*times, strict=True)))


def _seconds(run: Callable[[], object], device: torch.device) -> float:
    _wait(device)
    begin = time.perf_counter()
    run()
    _wait(device)
    return time.perf_counter() - begin


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
