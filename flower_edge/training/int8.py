"""Training in 8 bits: integers are multiplied, forward and backward."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from flower_edge.kernels._int8_shape import check_geometry
from flower_edge.training._int8_conv import Int8Arithmetic
from flower_edge.training.layers import EdgeConv2d, EdgeLinear, EdgeRangeEvoNorm
from flower_edge.training.range_evonorm import RangeEvoNorm
from flower_edge.training.rule import Rule
from flower_edge.training.where import Where, check_where


def _everywhere(name: str, layer: nn.Module) -> bool:
    return True


@dataclass(frozen=True)
class Int8Training:
    r"""Train convolutions and linear layers with 8-bit integers: forward pass, saved input, both gradients.

    Per layer and step, input, weight and gradient of the output are quantised, and integers are multiplied
    and summed without rounding:

    * the input to the 256 levels between its least and its greatest value, nearest;
    * the weight to ±127, with a scale for each channel of the result; its master copy stays float32, and is
      what the optimizer and ``state_dict`` see;
    * the gradient of the output to ±127 with one scale, rounded up by chance, so that its mean is right.

    What is saved for the backward pass is the 8-bit input, a quarter of the float32 one. The gradient of the
    weight is made from it and from the gradient in `error_bits`: with 8, small gradients beside large ones
    are mostly noise, which can end a training under strong label skew; with 16, that product takes twice
    the time. The gradient of the bias is exact.

    The arithmetic follows Aketi, Kodge, Roy, "Low Precision Decentralized Distributed Training over IID and
    non-IID Data", 2021, which simulates it in floating point.

    In eval mode, and where no gradient is wanted, layers compute in float32 as torch does. A NaN or an
    infinity raises a ValueError where it is to be quantised. Second derivatives are refused.

    Parameters
    ----------
    error_bits : {8, 16}, default 16
        Of the gradient of the output, where that of the weight is made from it.
    rounding : {"stochastic", "nearest"}, default "stochastic"
        Of its 8 bits. Random numbers come from torch's generator: ``torch.manual_seed`` repeats a run, for
        any number of threads and on any instruction set.
    where : callable, Last or AllButStem
        Which layers: a callable takes name and module. Default: all convolutions and linear layers.
    fallback : {"measured", "never"}, default "measured"
        "measured": the first training step with a new shape times both ways on its tensors, and a layer for
        which torch's own is faster (in autocast's dtype, where that is on) uses it;
        :func:`flower_edge.training.explain` says which. The choice may then differ between machines and runs.
        "never": always in 8 bits.
    chain : bool, default False
        Whether layers hand bytes to each other: convolutions, :class:`RangeEvoNorm`, which then computes with
        bytes too and is among the layers of `where`, and the additions and ReLUs between them. What lies
        between two layers is then bytes with a scale of its own, and that alone is saved. Other operations
        see a float32 tensor, as ever.

    Raises
    ------
    TypeError
        If `where` is none of these, or `chain` no bool.
    ValueError
        If another value is none of these.
    """

    error_bits: Literal[8, 16] = 16
    rounding: Literal["stochastic", "nearest"] = "stochastic"
    where: Where = _everywhere
    fallback: Literal["measured", "never"] = "measured"
    chain: bool = False

    def __post_init__(self) -> None:
        if self.error_bits not in (8, 16) or isinstance(self.error_bits, bool):
            raise ValueError(f"error_bits is {self.error_bits!r}, expected 8 or 16")
        if self.rounding not in ("stochastic", "nearest"):
            raise ValueError(f"rounding is {self.rounding!r}, expected 'stochastic' or 'nearest'")
        check_where(self.where)
        if self.fallback not in ("measured", "never"):
            raise ValueError(f"fallback is {self.fallback!r}, expected 'measured' or 'never'")
        if not isinstance(self.chain, bool):
            raise TypeError(f"chain is {self.chain!r}, expected True or False")

    def layers(self) -> Mapping[type[nn.Module], type[nn.Module]]:
        """Convolutions over two dimensions and linear layers; with `chain`, RangeEvoNorm."""
        carriers: dict[type[nn.Module], type[nn.Module]] = {nn.Conv2d: EdgeConv2d, nn.Linear: EdgeLinear}
        return carriers | {RangeEvoNorm: EdgeRangeEvoNorm} if self.chain else carriers

    def rule(self, layer: nn.Module) -> Rule:
        """Set all parts.

        Parameters
        ----------
        layer : Module
            A convolution, a linear layer or, with `chain`, a RangeEvoNorm.

        Returns
        -------
        Rule
            All of its parts.

        Raises
        ------
        ValueError
            If it is none of these, its weight is not float32, or sums of its products might overflow 32 bits.
        """
        part = Int8Arithmetic(
            self.error_bits, self.rounding == "stochastic", self.fallback == "measured", self.chain
        )
        if self.chain and isinstance(layer, RangeEvoNorm):
            for parameter in layer.parameters():
                if parameter.dtype != torch.float32:
                    raise ValueError(f"its parameters are {parameter.dtype}, expected torch.float32")
            return Rule(forward=part, saved=part, grad_input=part)
        if not isinstance(layer, nn.Conv2d | nn.Linear):
            raise ValueError(f"it is a {type(layer).__name__}, expected a Conv2d or a Linear")
        if layer.weight.dtype != torch.float32:
            raise ValueError(f"its weight is {layer.weight.dtype}, expected torch.float32, the master copy")
        if isinstance(layer, nn.Conv2d):
            check_geometry(layer.weight.shape, layer.stride, layer.groups)
        else:
            check_geometry((*layer.weight.shape, 1, 1), (1, 1), 1)
        return Rule(forward=part, saved=part, grad_input=part, grad_weight=part)
