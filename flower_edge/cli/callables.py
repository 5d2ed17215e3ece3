"""A user's own function, by the name of its module."""

import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def named_callable(reference: str, folder: str | Path, example: str, returns: str) -> Callable[..., Any]:
    """Import a callable.

    Parameters
    ----------
    reference : str
        ``module:name``.
    folder : str or Path
        Where the module is looked for first.
    example : str
        Of a reference, for the error.
    returns : str
        What it should return, for the error.

    Raises
    ------
    ValueError
        If the reference has another form, or the module no such callable.
    ImportError
        If there is no such module.
    """
    module, _, name = reference.partition(":")
    if not module or not name or module.startswith("."):
        raise ValueError(f"received {reference!r}, expected MODULE:CALLABLE, such as {example}")
    path = os.fspath(folder)
    sys.path.insert(0, path)
    try:
        found = getattr(importlib.import_module(module), name, None)
    finally:
        sys.path.remove(path)
    if not callable(found):
        raise ValueError(f"{module} has no callable {name!r}, expected one that returns {returns}")
    return found  # type: ignore[no-any-return]
