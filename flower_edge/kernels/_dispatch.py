"""Which version of a kernel runs here, and why."""

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from types import ModuleType

from flower_edge.kernels import _threads

OVERRIDE = "FLOWER_EDGE_ISA"

# What runs in place of each kernel family where the extension is missing.
_TWINS = {
    "mix": "numpy",
    "gradient_filter": "torch",
    "sign_bits": "torch",
    "spectrum": "torch",
    "int8": "torch",
    "range_evonorm": "torch",
    "sparse_grad": "torch",
    "byte_sums": "torch",
    "batch_norm": "torch",
}


def _load() -> tuple[ModuleType | None, str]:
    try:
        return importlib.import_module("flower_edge._kernels"), ""
    except ImportError as error:
        reason = f"flower_edge._kernels cannot be imported ({error}); build it with: pip install -e ."
    if os.environ.get(OVERRIDE):
        raise ValueError(
            f"{OVERRIDE}={os.environ[OVERRIDE]} asks for a compiled version, but {reason}. "
            f"Build it, or unset {OVERRIDE} to run the slow numpy twins"
        )
    return None, reason


extension, missing_because = _load()
_default = "numpy" if extension is None else str(extension.ceiling())
_ceiling: ContextVar[str] = ContextVar("flower_edge_isa", default=_default)


def ceiling() -> str:
    """Name the instruction set that kernels may use at most, in this context."""
    return _ceiling.get()


def has_vectors(family: str) -> bool:
    """Tell whether a family of kernels runs vectors in this context, and not plain C or its twin."""
    return extension is not None and _version_of(family, ceiling()) != "serial"


@lru_cache(maxsize=64)
def _version_of(family: str, ceiling: str) -> str:
    return "serial" if extension is None else str(extension.dispatch(ceiling)[family])


def available_isas() -> tuple[str, ...]:
    """List the instruction sets that this CPU offers to the kernels, the plainest first.

    Returns
    -------
    tuple of str
        For example ``("serial", "avx2", "avx512")``, or ``("numpy",)`` where the extension is missing.
    """
    return ("numpy",) if extension is None else tuple(extension.available_isas())


@contextmanager
def use_isa(isa: str) -> Iterator[None]:
    """Let kernels use this instruction set at most, inside a ``with`` block and only in the current context.

    It is meant for tests and measurements; ``FLOWER_EDGE_ISA`` does the same for a whole process.

    Parameters
    ----------
    isa : str
        One of :func:`available_isas`. A kernel without a version for it runs its next plainer one.

    Raises
    ------
    ValueError
        If the name is unknown or this CPU lacks the instruction set.
    """
    if isa not in available_isas():
        raise ValueError(
            f"isa is {isa!r}, expected one of those that this CPU offers: {', '.join(available_isas())}"
        )
    token = _ceiling.set(isa)
    try:
        yield
    finally:
        _ceiling.reset(token)


@dataclass(frozen=True)
class Explanation:
    """What runs when a kernel is called; ``str()`` of it is for people.

    Attributes
    ----------
    cpu : str
        Architecture and features that kernels care about; empty where the extension is missing.
    versions : dict of str to str
        For each kernel family the version that runs; ``"numpy"`` and ``"torch"`` are slow twins. What is not
        float32 on the CPU runs on the slow twin in any case.
    reason : str
        Why these versions.
    threads : int
        Threads that a call from here may use.
    threads_reason : str
        Why so many.
    """

    cpu: str
    versions: dict[str, str]
    reason: str
    threads: int
    threads_reason: str

    def __str__(self) -> str:
        rows = {
            "cpu": self.cpu or "not probed",
            **self.versions,
            "because": self.reason,
            "threads": f"{self.threads} ({self.threads_reason})",
        }
        width = max(map(len, rows))
        return "\n".join(f"{name:<{width}}  {text}" for name, text in rows.items())


def explain() -> Explanation:
    """Say which version of each kernel runs in this context, on how many threads, and why.

    Returns
    -------
    Explanation
        Its ``str()`` is readable.
    """
    if extension is None:
        return Explanation(
            "",
            dict(_TWINS),
            f"slow twins, since {missing_because}",
            1,
            "numpy twins are serial, torch's use its own",
        )
    if ceiling() != _default:
        reason = f"use_isa({ceiling()!r}) is in force"
    elif os.environ.get(OVERRIDE):
        reason = f"{OVERRIDE}={_default} is in force"
    else:
        reason = "the best that this CPU has"
    threads, threads_reason = _threads.describe(extension)
    return Explanation(
        extension.cpu_features(), extension.dispatch(ceiling()), reason, threads, threads_reason
    )
