"""The kernels' threads: torch's own pool, since two thread runtimes would fight."""

import ctypes
import os
import sys
from types import ModuleType

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
    torch = sys.modules.get("torch")
    if (
        _state is not None
        or torch is None
        or not hasattr(torch, "_C")
        or not hasattr(torch, "get_num_threads")
    ):
        return
    try:
        # A look-up in torch's own module also searches the libtorch_cpu that it is linked to;
        # RTLD_NOLOAD makes sure that no second libtorch comes in.
        library = ctypes.CDLL(torch._C.__file__, mode=os.RTLD_NOLOAD | os.RTLD_LAZY)
        parallel_for = library.torch_parallel_for
    except (OSError, AttributeError) as error:
        _state = f"torch {torch.__version__} has no torch_parallel_for, which came with 2.10 ({error})"
        return
    extension.set_parallel_for(ctypes.cast(parallel_for, ctypes.c_void_p).value)
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
