"""Functions of the libtorch that is already loaded: the extension links to none of its own."""

import ctypes
import os


def address_of(name: str) -> int:
    """Find a C function in libtorch, after torch has been imported.

    Parameters
    ----------
    name : str
        Its symbol.

    Returns
    -------
    int
        Its address.

    Raises
    ------
    AttributeError
        If libtorch exports no such function.
    OSError
        If libtorch cannot be searched.
    """
    import torch

    # A look-up in torch's own module also searches the libtorch_cpu that it is linked to;
    # RTLD_NOLOAD makes sure that no second libtorch comes in.
    library = ctypes.CDLL(torch._C.__file__, mode=os.RTLD_NOLOAD | os.RTLD_LAZY)
    return ctypes.cast(getattr(library, name), ctypes.c_void_p).value or 0
