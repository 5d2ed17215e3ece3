"""Memory for large results, kept from one training step to the next.

The C library hands blocks of tens of megabytes back to the system as soon as they are freed, so that each
step would touch fresh pages: for a map of 300 MB that takes longer than filling it. Here, a block comes
back when the last tensor over it has died, and serves the next result of about its size.
"""

import os
from collections import deque
from functools import lru_cache
from math import prod
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch

SMALLEST = 1 << 18
"""Bytes from which on memory is kept: the C library may hand blocks back from half as many on."""

_LINE = 64
_FLOAT = 4
# A free block may be larger than what is asked for by this factor.
_WASTE = 1.25

_Block = npt.NDArray[np.float32]


def check_gapless(shape: tuple[int, ...], strides: tuple[int, ...]) -> None:
    """Refuse strides that do not make elements fill a range of memory, each once, in whatever order."""
    length = 1
    for stride, size in sorted(zip(strides, shape, strict=True)):
        if size != 1 and stride != length and 0 not in shape:
            raise ValueError(
                f"shape {shape} has strides {strides}, expected such as fill memory without gaps"
            )
        length *= size


@lru_cache(maxsize=4096)
def _layout(shape: tuple[int, ...], strides: tuple[int, ...], size: int) -> tuple[int, tuple[int, ...]]:
    """Count the elements of a tensor without gaps, and give its strides in bytes."""
    check_gapless(shape, strides)
    return prod(shape), tuple(size * stride for stride in strides)


def _default_limit() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 8


class Workspace:
    """A pool of blocks of memory that tensors are made over.

    Parameters
    ----------
    limit : int, optional
        Bytes of free blocks that are kept at most. Default: an eighth of the machine's memory.
    """

    def __init__(self, limit: int | None = None) -> None:
        self.limit = _default_limit() if limit is None else limit
        self._lock = Lock()
        # Tensors die in any thread and in the middle of anything, so their blocks come back through a queue
        # that
        # needs no lock.
        self._returned: deque[_Block] = deque()
        # By length; of equals the last one that came back is taken first: it may still be in a cache.
        self._free: dict[int, list[_Block]] = {}
        self._free_bytes = 0

    def empty(self, shape: tuple[int, ...], strides: tuple[int, ...]) -> "torch.Tensor":
        """Make a float32 tensor on the CPU without setting its values.

        Parameters
        ----------
        shape : tuple of int
            Of the tensor.
        strides : tuple of int
            In elements; they must fill the memory without gaps, in any order of dimensions.

        Returns
        -------
        torch.Tensor
            It begins on a cache line. Its memory serves another tensor when its storage has died: when it,
            each of its views, and each graph that saved one of them are gone.
        """
        import torch

        length, byte_strides = _layout(shape, strides, _FLOAT)
        if length * _FLOAT < SMALLEST:
            return torch.empty_strided(shape, strides, dtype=torch.float32, device="cpu")
        return self._lease(shape, np.float32, self._take(length), byte_strides)

    def empty_bytes(self, shape: tuple[int, ...], strides: tuple[int, ...]) -> "torch.Tensor":
        """Do what :meth:`empty` does, for bytes.

        Parameters
        ----------
        shape, strides : tuple of int
            As there.

        Returns
        -------
        torch.Tensor
            uint8; all else as there.
        """
        import torch

        length, _ = _layout(shape, strides, 1)
        if length < SMALLEST:
            return torch.empty_strided(shape, strides, dtype=torch.uint8, device="cpu")
        return self._lease(shape, np.uint8, self._take(-(-length // _FLOAT)), strides)

    def _lease(
        self, shape: tuple[int, ...], dtype: npt.DTypeLike, block: _Block, strides: tuple[int, ...]
    ) -> "torch.Tensor":
        import torch

        lease = _Lease(shape, dtype, block, 0, strides)
        lease.block, lease.returned = block, self._returned
        return torch.from_numpy(lease)

    def release(self) -> int:
        """Give all free blocks back to the system.

        Returns
        -------
        int
            How many bytes that were.
        """
        with self._lock:
            self._collect()
            freed, self._free_bytes = self._free_bytes, 0
            self._free.clear()
        return freed

    def _take(self, length: int) -> _Block:
        with self._lock:
            self._collect()
            fitting = self._free.get(length) or self._somewhat_larger(length)
            if fitting:
                block = fitting.pop()
                self._free_bytes -= _FLOAT * len(block)
                return block
        unaligned = np.empty(length + _LINE // _FLOAT, np.float32)
        begin = -unaligned.ctypes.data % _LINE // _FLOAT
        return unaligned[begin : begin + length]

    def _somewhat_larger(self, length: int) -> list[_Block] | None:
        # Lengths that nobody asks for any more are forgotten here.
        self._free = {kept: blocks for kept, blocks in self._free.items() if blocks}
        fitting = [kept for kept in self._free if length <= kept <= length * _WASTE]
        return self._free[min(fitting)] if fitting else None

    def _collect(self) -> None:
        while self._returned:
            block = self._returned.popleft()
            equals = self._free.get(len(block))
            if equals is None:
                equals = self._free[len(block)] = []
            equals.append(block)
            self._free_bytes += _FLOAT * len(block)
        # The largest first: a block of another model, or of a larger batch, is more likely among them.
        while self._free_bytes > self.limit:
            largest = max(length for length, blocks in self._free.items() if blocks)
            self._free[largest].pop()
            self._free_bytes -= _FLOAT * largest


class _Lease(np.ndarray[Any, Any]):
    """What a tensor's storage holds on to: gives the block back when it dies."""

    block: _Block
    returned: deque[_Block]

    def __del__(self) -> None:
        self.returned.append(self.block)


_workspace = Workspace()


def _forget() -> None:
    # Another thread may have been at the pool while the process was forked. Tensors over its blocks live on.
    global _workspace
    _workspace = Workspace(_workspace.limit)


os.register_at_fork(after_in_child=_forget)


def workspace() -> Workspace:
    """Give the pool from which the kernels of this process take their results.

    Returns
    -------
    Workspace
        ``workspace().release()`` gives memory back; ``workspace().limit`` says how much may be kept.
    """
    return _workspace
