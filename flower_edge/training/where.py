"""Which layers of a model a method is for."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import index
from typing import TypeAlias

from torch import nn

NamedLayers: TypeAlias = Sequence[tuple[str, nn.Module]]

Where: TypeAlias = "Last | AllButStem | Callable[[str, nn.Module], bool]"


@dataclass(frozen=True)
class Last:
    """The last layers that a method can serve; made by :func:`last`."""

    count: int

    def __str__(self) -> str:
        return f"last({self.count})"


@dataclass(frozen=True)
class AllButStem:
    """Every layer that a method can serve but the first; :data:`all_but_stem` is the only one needed."""

    def __str__(self) -> str:
        return "all_but_stem"


all_but_stem = AllButStem()
"""Every layer but the first, whose features all others are made of."""


def last(count: int) -> Last:
    """Choose the last layers, in the order of ``model.named_modules()``.

    Parameters
    ----------
    count : int
        How many, at least 1; all of them where the model has fewer.

    Returns
    -------
    Last
        For the ``where`` of a method.

    Raises
    ------
    TypeError
        If `count` is not an int.
    ValueError
        If it is less than 1.
    """
    if isinstance(count, bool) or not hasattr(count, "__index__"):
        raise TypeError(f"last() takes an int, received {count!r}")
    if index(count) < 1:
        raise ValueError(f"last() takes a number of layers, at least 1; received {count}")
    return Last(index(count))


def chosen(where: Where, layers: NamedLayers) -> list[tuple[str, nn.Module]]:
    """Choose among the layers that a method can serve.

    Parameters
    ----------
    where : Last, AllButStem or callable
        A callable takes name and module, and tells whether the layer is chosen.
    layers : sequence of (str, Module)
        In the order of the model.

    Returns
    -------
    list of (str, Module)
        In the same order.
    """
    if isinstance(where, Last):
        return list(layers[-where.count :])
    if isinstance(where, AllButStem):
        return list(layers[1:])
    return [(name, layer) for name, layer in layers if where(name, layer)]


def check_where(where: object) -> None:
    """Refuse what cannot choose layers."""
    if isinstance(where, type) or not (isinstance(where, Last | AllButStem) or callable(where)):
        raise TypeError(
            f"where is {where!r:.200}, expected last(n), all_but_stem, or a callable of name and module"
        )
