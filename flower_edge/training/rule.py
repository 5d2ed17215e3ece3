"""How one layer computes, and who decided it."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Protocol, runtime_checkable

from torch import nn

from flower_edge.training.where import Where


@dataclass(frozen=True)
class Rule:
    """How one layer computes: four parts, each set by at most one method. None is torch's own exact way.

    Attributes
    ----------
    forward : object, optional
        How the output is computed.
    saved : object, optional
        What is kept of the input for the backward pass.
    grad_input, grad_weight : object, optional
        How the two gradients are formed.
    """

    forward: object | None = None
    saved: object | None = None
    grad_input: object | None = None
    grad_weight: object | None = None

    def and_also(self, other: "Rule", layer: str) -> "Rule":
        """Join the parts of two rules.

        Parameters
        ----------
        other : Rule
            What another method sets.
        layer : str
            Name of the layer, for the error.

        Returns
        -------
        Rule
            Every part that either of them sets.

        Raises
        ------
        ValueError
            If both set the same part.
        """
        parts = {}
        for part in (field.name for field in fields(self)):
            mine, theirs = getattr(self, part), getattr(other, part)
            if mine is not None and theirs is not None:
                raise ValueError(
                    f"layer {layer!r}: {mine} and {theirs} both set its {part}, expected one method for each "
                    "part of a layer; choose other layers with where=, or call restore_(model) first"
                )
            parts[part] = theirs if mine is None else mine
        return Rule(**parts)

    def __str__(self) -> str:
        parts = {field.name: getattr(self, field.name) for field in fields(self)}
        made_by: dict[str, list[str]] = {}
        for part, method in parts.items():
            if method is not None:
                made_by.setdefault(str(method), []).append(part)
        return "; ".join(f"{', '.join(names)}: {method}" for method, names in made_by.items()) or "exact"


class Method(Protocol):
    """What :func:`flower_edge.training.prepare_` asks of a method."""

    @property
    def where(self) -> Where:
        """Which of the layers that it can serve it is for."""
        ...

    def layers(self) -> Mapping[type[nn.Module], type[nn.Module]]:
        """Map each class that it can serve, subclasses excluded, to the class that carries rules."""
        ...

    def rule(self, layer: nn.Module) -> Rule:
        """Give the parts that it sets of this layer's rule, or raise ValueError saying why it cannot."""
        ...


@runtime_checkable
class ModelMethod(Protocol):
    """A method that has to see the whole model before it can say what it does to a layer."""

    def for_model(self, model: nn.Module) -> Method:
        """Give what it is for this model, or raise ValueError saying why it cannot be anything."""
        ...
