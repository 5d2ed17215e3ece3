"""What becomes of a tensor's optimizer state while the tensor is not trained."""

from collections.abc import MutableMapping
from typing import Any, Literal, TypeAlias

from torch import Tensor

OnReturn: TypeAlias = Literal["keep", "drop"] | float
"""``"keep"``, ``"drop"``, or the factor in [0, 1) by which momentum is multiplied."""

MOMENTA = ("momentum_buffer", "exp_avg")
"""State that says where the loss used to fall, by torch's names: of SGD, RMSprop, Muon; of Adam and its
kin."""


def check_on_return(value: object) -> OnReturn:
    """Return `value` if it is one.

    Raises
    ------
    ValueError
        If it is not.
    """
    if value == "keep" or value == "drop":
        return value
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1:
        return float(value)
    raise ValueError(
        f"on_return is {value!r:.70}, expected 'keep', 'drop' or a decay of at least 0 and below 1"
    )


def come_back(state: MutableMapping[str, Any], on_return: OnReturn) -> None:
    """Change the optimizer state of a tensor that is trained again."""
    if on_return == "drop":
        state.clear()
    elif on_return != "keep":
        for name in MOMENTA:
            if isinstance(state.get(name), Tensor):
                state[name].mul_(on_return)
