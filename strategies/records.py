"""Flower's records ↔ numpy arrays, without trusting what they claim."""

from __future__ import annotations

import tokenize
from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any

import numpy as np
import numpy.typing as npt
from flwr.app import Array, ArrayRecord, RecordDict

from flower_edge.gossip.codec import ArraySpec, Layout, is_finite

MAX_NPY_HEADER_BYTES = 16 * 1024

# What numpy lets out beside ValueError: it reads a header with Python's own parser.
_BAD_HEADER = (
    *(tokenize.TokenError, SyntaxError, MemoryError, RecursionError),
    *(TypeError, AttributeError, LookupError, ArithmeticError),
)


def read_npy(content: bytes, expected: ArraySpec) -> npt.NDArray[Any]:
    """Read an array in numpy's npy format as a read-only view of `content`.

    The shape and dtype that it claims, and the number of bytes that are really there, are compared with
    what is expected before anything is made of them; objects are never unpickled.

    Raises
    ------
    ValueError
        If it is not in that format, or not the array expected.
    """
    file = BytesIO(content)
    version = np.lib.format.read_magic(file)
    read_header = (
        np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    )
    try:
        shape, fortran_order, dtype = read_header(file)
    except _BAD_HEADER as error:
        raise ValueError(
            f"array {expected.name!r} has a header that cannot be read, expected numpy's: {error!r:.80}"
        ) from error
    received = ArraySpec(expected.name, shape, str(dtype))
    if received != expected:
        raise ValueError(f"received array {received}, expected {expected}")
    size, expected_size = len(content) - file.tell(), expected.size * dtype.itemsize
    if size != expected_size:
        raise ValueError(f"array {expected} has {size} bytes, expected {expected_size}")
    flat = np.frombuffer(content, dtype, count=expected.size, offset=file.tell())
    return flat.reshape(shape, order="F" if fortran_order else "C")


def to_numpy(record: ArrayRecord, layout: Layout, *, partial: bool = False) -> dict[str, npt.NDArray[Any]]:
    """Return the arrays of a record that came over the network, all of them as `layout` says.

    Parameters
    ----------
    record : ArrayRecord
        As received.
    layout : Layout
        Names, shapes and dtypes expected.
    partial : bool, default False
        Whether arrays may be missing.

    Raises
    ------
    ValueError
        If an array is missing, unexpected, damaged, or of another shape or dtype.
    """
    if partial:
        layout.check_known(record)
    else:
        layout.check_names(record)
    return {
        spec.name: read_npy(_npy(record[spec.name]), spec) for spec in layout.specs if spec.name in record
    }


def to_record(arrays: Mapping[str, npt.NDArray[Any]]) -> ArrayRecord:
    """Return an ArrayRecord of copies of `arrays`."""
    return ArrayRecord({name: Array(np.asarray(array)) for name, array in arrays.items()})


def only_arrays(content: RecordDict) -> ArrayRecord:
    """Return the one ArrayRecord of a reply; a ValueError if there is none or are several."""
    if len(content.array_records) != 1:
        raise ValueError(f"expected exactly one ArrayRecord, received {len(content.array_records)}")
    record: ArrayRecord = next(iter(content.array_records.values()))
    return record


def checked_weight(content: RecordDict, weighted_by_key: str) -> float:
    """Return the weight in the one MetricRecord of a reply; a ValueError if it is not a positive number."""
    if len(content.metric_records) != 1:
        raise ValueError(f"expected exactly one MetricRecord, received {len(content.metric_records)}")
    (metrics,) = content.metric_records.values()
    weight = metrics.get(weighted_by_key)
    if not isinstance(weight, int | float) or not 0 < weight < float("inf"):
        raise ValueError(f"metric {weighted_by_key!r} is {weight!r}; expected a positive number")
    return float(weight)


def _npy(array: Array) -> bytes:
    if array.stype != "numpy.ndarray":
        raise ValueError(f"received an array serialised as {array.stype!r}, expected 'numpy.ndarray'")
    return array.data


def average(models: Sequence[Mapping[str, Any]], layout: Layout) -> ArrayRecord | None:
    """Return the average of models, those that are not finite left out; None if there is none.

    Arrays that gossip does not mix are the first model's.
    """
    flat = [layout.flatten(model) for model in models]
    good = [(vector, carried) for vector, carried in flat if is_finite(vector)]
    if not good:
        return None
    mean = np.asarray(np.mean([vector for vector, _ in good], axis=0, dtype=np.float64), np.float32)
    return to_record(layout.unflatten(mean, good[0][1]))
