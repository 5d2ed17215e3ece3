"""The kernels' threads: torch's own pool, since two thread runtimes would fight."""

import sys
from types import ModuleType

from flower_edge.kernels._libtorch import address_of

# None until torch has been looked at: its import takes seconds, so a process that does not need it is spared.
_state: str | None = None


def connect(extension: ModuleType) -> None:
    """Hand libtorch's ``torch_parallel_for`` to the extension, once torch has been imported by somebody.

    Parameters
    ----------
    extension : module
        ``flower_edge._kernels``.
    """
    global _state
    if _state is not None:
        return
    torch = sys.modules.get("torch")
    if torch is None or not hasattr(torch, "_C") or not hasattr(torch, "get_num_threads"):
        return
    try:
        parallel_for = address_of("torch_parallel_for")
    except (OSError, AttributeError) as error:
        _state = f"torch {torch.__version__} has no torch_parallel_for, which came with 2.10 ({error})"
        return
    extension.set_parallel_for(parallel_for)
    _state = ""


def describe(extension: ModuleType) -> tuple[int, str]:
    """Count the threads that a kernel may use now, and say why.

    Parameters
    ----------
    extension : module
        ``flower_edge._kernels``.

    Returns
    -------
    tuple of int and str
        Number of threads; reason.
    """
    connect(extension)
    if _state is None:
        return 1, "the calling one alone, since torch is not imported in this process"
    if _state:
        return 1, f"the calling one alone, since {_state}"
    return int(sys.modules["torch"].get_num_threads()), "torch's pool; torch.set_num_threads changes it"
