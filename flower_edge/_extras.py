"""Import of optional dependencies, where they are used."""

import importlib
from typing import Any


def require(module: str, extra: str) -> Any:
    """Import an optional dependency, or say which extra brings it.

    Parameters
    ----------
    module : str
        Dotted name of the module, for example ``"networkx"``.
    extra : str
        Name of the extra of flower_edge that installs it, for example ``"topology"``.

    Returns
    -------
    module
        The imported module.

    Raises
    ------
    ImportError
        If the module is not installed; the message names the extra.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"{module} is needed here and cannot be imported ({error}). "
            f"Install it with: pip install 'flower_edge[{extra}]'"
        ) from error
