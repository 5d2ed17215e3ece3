"""Memory for large results, kept from one training step to the next.

The C library hands blocks of tens of megabytes back to the system as soon as they are freed, so that each
step would touch fresh pages: for a map of 300 MB that takes longer than filling it. Here, a block comes
back when the last tensor over it has died, and serves the next result of about its size.
"""

import os
from typing import TYPE_CHECKING

from flower_edge.kernels import _dispatch

if TYPE_CHECKING:
    import torch

_BYTE, _FLOAT = 1, 4


def _default_limit() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 8


class Workspace:
    """The process's pool of blocks of memory that tensors are made over; without the extension, torch's own.

    A child of the process that was forked goes on with a copy of it.
    """

    def __init__(self) -> None:
        self.limit = _default_limit()

    @property
    def limit(self) -> int:
        """Bytes of free blocks that are kept at most; at first an eighth of the machine's memory."""
        return self._limit

    @limit.setter
    def limit(self, limit: int) -> None:
        if _dispatch.extension is not None:
            _dispatch.extension.workspace_set_limit(limit)
        self._limit = limit

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

        Raises
        ------
        ValueError
            If there are gaps, or it does not fit into memory.
        """
        import torch

        if _dispatch.extension is None:
            return torch.empty_strided(shape, strides, dtype=torch.float32, device="cpu")
        return torch.utils.dlpack.from_dlpack(_dispatch.extension.workspace_lend(_FLOAT, shape, strides))

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

        if _dispatch.extension is None:
            return torch.empty_strided(shape, strides, dtype=torch.uint8, device="cpu")
        return torch.utils.dlpack.from_dlpack(_dispatch.extension.workspace_lend(_BYTE, shape, strides))

    def release(self) -> int:
        """Give all free blocks back to the system.

        Returns
        -------
        int
            How many bytes that were.
        """
        return 0 if _dispatch.extension is None else int(_dispatch.extension.workspace_release())


_workspace = Workspace()


def workspace() -> Workspace:
    """Give the pool from which the kernels of this process take their results.

    Returns
    -------
    Workspace
        ``workspace().release()`` gives memory back; ``workspace().limit`` says how much may be kept.
    """
    return _workspace
