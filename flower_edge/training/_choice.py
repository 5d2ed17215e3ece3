"""Whether a method is faster than torch's exact way for a layer, by the clock."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from flower_edge.training import _filter_ops, _ops
from flower_edge.training._quantised_map import QuantisedMap

if TYPE_CHECKING:
    from flower_edge.training._filtered_conv import ConvFilter

_ENOUGH_SECONDS = 0.1
_MOST_REPEATS = 7
# The first touches fresh memory, which later steps do not.
_LEAST_REPEATS = 2
# What the clock shows while other processes have the cores may be wrong, so a close call is looked at again:
# at these uses of what is known.
_LATER_LOOKS = (16, 128)
_CLOSE = 1.5
# Of two that take about as long, the method needs less memory.
_MARGIN = 0.95


@dataclass(frozen=True)
class Measurement:
    """Seconds that both paths take for one layer, the least of a few repeats.

    Attributes
    ----------
    exact_seconds : float
        Torch's own way; for gradient filtering, the backward pass of the convolution.
    method_seconds : float
        The method's; for gradient filtering, sums over patches in the forward pass and the filtered backward
        pass.
    """

    exact_seconds: float
    method_seconds: float

    @property
    def exact_is_faster(self) -> bool:
        """Tell whether the method does not pay: the exact way takes at least a twentieth less time."""
        return self.exact_seconds < _MARGIN * self.method_seconds

    @property
    def is_close(self) -> bool:
        """Tell whether the decision is for the exact way, or might have been on a busier machine."""
        return self.exact_seconds < _CLOSE * self.method_seconds

    def with_repeats(self, more: "Measurement") -> "Measurement":
        """Take more repeats into account.

        Parameters
        ----------
        more : Measurement
            Of the same layer.

        Returns
        -------
        Measurement
            The least of both, for each path.
        """
        return Measurement(
            min(self.exact_seconds, more.exact_seconds), min(self.method_seconds, more.method_seconds)
        )


@dataclass
class _Record:
    measurement: Measurement
    uses: int = 0
    # torch.utils.checkpoint runs a forward pass again, which must decide as before.
    is_settled: bool = False

    def count_use(self) -> bool:
        """Count a use, and tell whether it is one that measures."""
        self.uses += 1
        self.is_settled |= saved_tensors_are_hooked()
        return self.uses in _LATER_LOOKS and self.measurement.is_close and not self.is_settled


_known: dict[tuple[object, ...], _Record] = {}


def measured(x: Tensor, weight: Tensor, conv: "ConvFilter") -> Measurement | None:
    """Measure both paths on the tensors of a training step, or look up what equal layers have shown before.

    What was close is measured again at its 16th and 128th use.

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
    return looked_up(key, x, lambda: _measure(x, weight, conv))


def looked_up(key: tuple[object, ...], x: Tensor, measure: Callable[[], Measurement]) -> Measurement | None:
    """Look up what is known of a layer, or measure it where nothing is or it is time for another look.

    Parameters
    ----------
    key : tuple
        All that the times depend on.
    x : Tensor
        The input.
    measure : callable
        Measures both ways.

    Returns
    -------
    Measurement or None
        As of :func:`measured`.
    """
    record = _known.get(key)
    if record is not None and not record.count_use():
        return record.measurement
    if type(x) not in (Tensor, torch.nn.Parameter, QuantisedMap) or x.is_meta:
        return None if record is None else record.measurement
    found = measure()
    if record is None:
        record = _known[key] = _Record(found)
        record.count_use()
    else:
        record.measurement = record.measurement.with_repeats(found)
    return record.measurement


def is_known_for_good(key: tuple[object, ...]) -> bool:
    """Tell whether no later use of this key will measure again."""
    record = _known.get(key)
    return record is not None and record.uses >= _LATER_LOOKS[-1]


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
            sums = _filter_ops.saved(x, grad.shape, weight.shape, conv) if needs[1] else None
            return _filter_ops.backward(grad, weight, sums, x.shape, conv, channels_last, needs[0])

        return timed(exact, filtered, x.device)


def timed(exact: Callable[[], object], method: Callable[[], object], device: torch.device) -> Measurement:
    """Time both ways side by side, a few times.

    Parameters
    ----------
    exact, method : callable
        The two ways.
    device : torch.device
        Where they run.

    Returns
    -------
    Measurement
        The least of the repeats.
    """
    times: list[tuple[float, float]] = []
    spent = 0.0
    while len(times) < _LEAST_REPEATS or (spent < _ENOUGH_SECONDS and len(times) < _MOST_REPEATS):
        times.append((_seconds(exact, device), _seconds(method, device)))
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


def saved_tensors_are_hooked() -> bool:
    """Tell whether somebody else keeps what graphs save, as a checkpoint does."""
    return torch._C._autograd._top_saved_tensors_default_hooks(False) is not None
