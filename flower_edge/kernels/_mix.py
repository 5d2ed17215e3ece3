"""Weighted sums of model vectors: one gossip step is one of them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import numpy.typing as npt

from flower_edge.kernels import _dispatch, _threads
from flower_edge.kernels._arrays import Span, as_array, check_writable, mark_written, span

if TYPE_CHECKING:
    from flower_edge.kernels._arrays import Vector

_Out = TypeVar("_Out", bound="Vector")

# The twin works through slices of this many elements, so that its float64 sums stay in cache.
_SLICE = 1 << 16

_LARGEST = float(np.finfo(np.float32).max)


def mix(out: _Out, vectors: Sequence["Vector"], weights: Sequence[float] | npt.NDArray[np.floating]) -> _Out:
    r"""Write ``out = sum_j weights[j] * vectors[j]`` in one pass over memory.

    This is one node's mixing step :math:`x_i \leftarrow \sum_j W_{ij} x_j` of D-PSGD (Lian et al., "Can
    Decentralized Algorithms Outperform Centralized Algorithms?", NeurIPS 2017, Algorithm 1). NaN and infinity
    in the vectors propagate as in IEEE arithmetic.

    Each element is the same chain of float32 operations, in the order of the vectors, so results are
    bit-identical whatever the number of threads, the length or the alignment. The vector versions fuse
    multiplication and addition and the serial version does not: two instruction sets may differ by rounding.

    Parameters
    ----------
    out : ndarray or torch.Tensor
        Shape ``(n,)``, float32, contiguous, on the CPU; ``n`` may be 0. It may be one or several of the
        vectors, but must not overlap one partly.
    vectors : sequence of ndarray or torch.Tensor
        At least one; each of the same shape and dtype as `out`. They need not be aligned.
    weights : sequence of float
        One for each vector; rounded to float32.

    Returns
    -------
    ndarray or torch.Tensor
        `out` itself.

    Raises
    ------
    TypeError
        If a vector is not float32, not on the CPU, or neither array nor tensor, or a weight is not a number.
    ValueError
        If shapes, numbers of vectors and weights, memory layout or aliasing do not fit, or a weight is not
        finite in float32.
    """
    # A sequence may make its items when asked for them: these live as long as their addresses are in use.
    vectors = list(vectors)
    spans, checked = _check(out, vectors, weights)
    if spans[0].length:
        if _dispatch.extension is None:
            _mix_numpy(as_array(out), [as_array(vector) for vector in vectors], checked)
        else:
            _threads.connect(_dispatch.extension)
            target, *rows = spans
            addresses = tuple(row.address for row in rows)
            _dispatch.extension.mix(_dispatch.ceiling(), target.address, target.length, addresses, checked)
        mark_written(out)
    return out


def mix_reference(
    out: _Out, vectors: Sequence["Vector"], weights: Sequence[float] | npt.NDArray[np.floating]
) -> _Out:
    """Do what :func:`mix` does, slowly and in plain numpy: sums in float64, rounded to float32 once.

    Parameters
    ----------
    out, vectors, weights
        As in :func:`mix`.

    Returns
    -------
    ndarray or torch.Tensor
        `out` itself.

    Raises
    ------
    TypeError, ValueError
        As in :func:`mix`.
    """
    vectors = list(vectors)
    _, checked = _check(out, vectors, weights)
    _mix_numpy(as_array(out), [as_array(vector) for vector in vectors], checked)
    mark_written(out)
    return out


def _mix_numpy(
    out: npt.NDArray[np.float32], vectors: list[npt.NDArray[np.float32]], weights: tuple[float, ...]
) -> None:
    rounded = np.array(weights, dtype=np.float32).astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        for start in range(0, out.size, _SLICE):
            here = slice(start, start + _SLICE)
            total = np.zeros(out[here].size)
            for vector, weight in zip(vectors, rounded, strict=True):
                total += weight * vector[here]
            out[here] = total


def _check(
    out: "Vector", vectors: Sequence["Vector"], weights: Sequence[float] | npt.NDArray[np.floating]
) -> tuple[list[Span], tuple[float, ...]]:
    """Check everything; return the spans of `out` and of each vector, and the weights."""
    if len(vectors) == 0:
        raise ValueError("vectors is empty, expected at least one vector")
    checked = _finite_weights(weights, len(vectors))
    check_writable(out, "out")
    target = span(out, "out")
    spans = [target]
    for j, vector in enumerate(vectors):
        row = span(vector, f"vectors[{j}]")
        if row.length != target.length:
            raise ValueError(f"vectors[{j}] has {row.length} elements, expected {target.length} as in out")
        if row.overlaps_partly(target):
            raise ValueError(
                f"vectors[{j}] overlaps out partly, {row.address - target.address} bytes apart; "
                "expected it to be out itself or to lie apart from it: pass a copy of one of them"
            )
        spans.append(row)
    return spans, checked


def _finite_weights(weights: Sequence[float] | npt.NDArray[np.floating], count: int) -> tuple[float, ...]:
    # Plain Python: for a small model, numpy's calls would take longer than the sum itself.
    numbers = weights.tolist() if isinstance(weights, np.ndarray) else weights
    if not hasattr(numbers, "__len__") or len(numbers) != count:
        raise ValueError(f"weights is {weights!r:.200}, expected {count} numbers: one for each vector")
    checked = []
    for j, number in enumerate(numbers):
        try:
            weight = float(number)
        except TypeError:
            raise TypeError(f"weights[{j}] is {number!r:.200}, expected a number") from None
        if not -_LARGEST <= weight <= _LARGEST:
            raise ValueError(f"weights[{j}] is {weight}, expected a number that is finite in float32")
        checked.append(weight)
    return tuple(checked)
