"""Tensors of constants, made once."""

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import TypeVar, TypeVarTuple

_Arguments = TypeVarTuple("_Arguments")
_Made = TypeVar("_Made")


def made_once(make: Callable[[*_Arguments], _Made]) -> Callable[[*_Arguments], _Made]:
    """Keep what a function makes of tensors for its next call with equal arguments.

    Under a tracer it is made anew: what a tracer makes has no data, and what has data it does not take.

    Parameters
    ----------
    make : callable
        With arguments that can be hashed.

    Returns
    -------
    callable
        `make`, but for the time that it takes.
    """
    kept = lru_cache(maxsize=256)(make)

    @wraps(make)
    def get(*args: *_Arguments) -> _Made:
        import torch
        from torch.utils._python_dispatch import _len_torch_dispatch_stack  # type: ignore[attr-defined]

        is_traced = torch.compiler.is_compiling() or _len_torch_dispatch_stack()
        return make(*args) if is_traced else kept(*args)

    return get
