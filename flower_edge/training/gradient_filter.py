"""Gradient filtering: a backward pass that sees patches, not cells."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import nn

from flower_edge.kernels import walsh_basis
from flower_edge.kernels._tiling import WIDEST_WINDOW
from flower_edge.training._filtered_conv import PatchFilter
from flower_edge.training.layers import EdgeConv2d
from flower_edge.training.rule import Rule
from flower_edge.training.where import Where, check_where, last

_LAST_FOUR = last(4)


@dataclass(frozen=True)
class GradientFilter:
    r"""Train convolutions with gradients that are constant on patches, or nearly so.

    The forward pass is exact. The gradient of the output is replaced with its mean :math:`\tilde g` over
    patches of :math:`r \times r` cells. Then the gradients of a convolution with stride s need only the sum
    of the weight over its taps, :math:`\tilde W`, and the sum of the input over windows of :math:`rs \times
    rs` cells, :math:`\tilde x`, which is all that is saved of the input for the backward pass:

    .. math::
        \nabla x = \tilde W^T \tilde g / s^2 \text{ on every cell of the window}, \qquad
        \nabla W = \sum_p \tilde g_p \tilde x_p^T / s^2 \text{ for every tap}

    (Yang, Li, Marculescu, "Efficient On-device Training via Gradient Filtering", CVPR 2023, section 3; the
    division by :math:`s^2`, which the paper lacks, gives both gradients the mean of the exact ones). The
    matrix products are :math:`r^2` times the number of taps smaller than the exact ones, and what is saved is
    :math:`(rs)^2` times smaller than the input. The gradient of the bias is exact.

    With more than one component, a patch keeps that many coefficients of a Walsh-Hadamard basis, the mean
    being the first; each has its own weight :math:`\tilde W_u` (:func:`flower_edge.training.tap_symbols`).
    Time and memory grow with their number. This brings to convolutions what Yang, Li, Marculescu, "Efficient
    Low-rank Backpropagation for Vision Transformer Adaptation", NeurIPS 2023, section 3, does to linear
    layers.

    It costs accuracy: the paper's own ResNet-18 on ImageNet, four layers filtered, falls from 72.3 % to 68.5
    %. More components, smaller patches and fewer layers cost less. Even r = 1 is not exact for kernels with
    more than one tap.

    Parameters
    ----------
    patch_size : int, default 2
        Cells of the output along a side of a patch, r; with more than one component 2, 4, 8 or 16.
    components : int, default 1
        Coefficients that are kept of a patch, from 1 to ``patch_size**2``.
    where : Last, AllButStem or callable, default last(4)
        Which convolutions: :func:`last`, :data:`all_but_stem`, or a callable that takes name and module.
    fallback : {"measured", "never"}, default "measured"
        "measured": the first training step with a new shape times both backward passes on its tensors, and a
        layer for which the exact one is faster uses it. The choice may then differ between machines and runs;
        "never" always filters, for runs that must be reproducible.

    Raises
    ------
    TypeError
        If a value is of the wrong type.
    ValueError
        If a number is out of its range, or there is no basis for the patch size.
    """

    patch_size: int = 2
    components: int = 1
    where: Where = _LAST_FOUR
    basis: Literal["walsh", "fourier"] = "walsh"
    fallback: Literal["measured", "never"] = "measured"

    def __post_init__(self) -> None:
        for name in ("patch_size", "components"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name} is {value!r}, expected an int")
            if value < 1:
                raise ValueError(f"{name} is {value}, expected at least 1")
        if self.basis not in ("walsh", "fourier"):
            raise ValueError(f"basis is {self.basis!r}, expected 'walsh' or 'fourier'")
        if self.basis == "fourier":
            self._check_fourier()
        elif self.components > self.patch_size**2:
            raise ValueError(
                f"components is {self.components}, expected at most {self.patch_size**2}, "
                f"the cells of a patch with patch_size={self.patch_size}"
            )
        else:
            walsh_basis(self.patch_size, self.components)
        check_where(self.where)
        if self.fallback not in ("measured", "never"):
            raise ValueError(f"fallback is {self.fallback!r}, expected 'measured' or 'never'")

    def _check_fourier(self) -> None:
        if self.components % 2 == 0:
            raise ValueError(
                f'components is {self.components}, expected an odd number with basis="fourier": '
                "the mean, and two for each frequency"
            )
        if self.patch_size > WIDEST_WINDOW:
            raise ValueError(
                f'patch_size is {self.patch_size}, expected at most {WIDEST_WINDOW} with basis="fourier"'
            )

    def layers(self) -> Mapping[type[nn.Module], type[nn.Module]]:
        """Convolutions over two dimensions."""
        return {nn.Conv2d: EdgeConv2d}

    def rule(self, layer: nn.Module) -> Rule:
        """Set all but the forward pass.

        Parameters
        ----------
        layer : Module
            A convolution.

        Returns
        -------
        Rule
            Its parts `saved`, `grad_input` and `grad_weight`.

        Raises
        ------
        ValueError
            If it does not pad with zeros, or is complex.
        """
        if not isinstance(layer, nn.Conv2d):
            raise ValueError(f"it is a {type(layer).__name__}, expected a Conv2d")
        if layer.padding_mode != "zeros":
            raise ValueError(
                f"it has padding_mode={layer.padding_mode!r}, and gradient filtering knows only 'zeros'"
            )
        if not layer.weight.is_floating_point():
            raise ValueError(f"its weight is {layer.weight.dtype}, expected a real floating dtype")
        if self.basis == "fourier":
            _check_reach(layer)
        part = PatchFilter(self.patch_size, self.components, self.fallback == "measured", self.basis)
        return Rule(saved=part, grad_input=part, grad_weight=part)


def _check_reach(layer: nn.Conv2d) -> None:
    """Refuse a kernel that no window of a spectrum can hold."""
    reach = [d * (k - 1) + 1 for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
    if max(reach) > WIDEST_WINDOW:
        raise ValueError(
            f'its kernel reaches over {max(reach)} cells, and basis="fourier" serves at most {WIDEST_WINDOW}'
        )
