"""Maps that leave their layer activated, on their way to the activation that follows."""

import torch
from torch import Tensor

_MARK = "_flower_edge_activated"


def hand_over(y: Tensor) -> Tensor:
    """Mark a map that a layer has activated in the place of the ReLU or ReLU6 that it goes to.

    Parameters
    ----------
    y : Tensor
        Goes nowhere else.

    Returns
    -------
    Tensor
        `y` itself.
    """
    # The version tells whether somebody has written into it since.
    setattr(y, _MARK, y._version)
    return y


def is_handed_over(x: Tensor) -> bool:
    """Tell whether a map has been activated in its reader's place, and take the mark off.

    Parameters
    ----------
    x : Tensor
        The input of an activation.

    Returns
    -------
    bool
        If so, it is the activation's output, too. Activating it again would change nothing.
    """
    if torch.compiler.is_compiling() or _MARK not in vars(x):
        return False
    return bool(vars(x).pop(_MARK) == x._version)
