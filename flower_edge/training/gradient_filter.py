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
_DEFAULTS = {
    "fourier": {"patch_size": 8, "components": 21},
    "walsh": {"patch_size": 2, "components": 1},
}


@dataclass(frozen=True)
class GradientFilter:
    r"""Train convolutions with gradients whose fine detail is left out.

    The forward pass is exact. Of the gradient of the output, and of the input that is saved for the backward
    pass, a few numbers are kept for each patch, so that all matrix products become many times smaller. The
    gradient of the bias is exact. There are two ways to choose these numbers.

    ``basis="fourier"``, the default, keeps the lowest frequencies of tiles of :math:`r \times r` cells:
    their mean, and a cosine and a sine part for each frequency. A tap of a kernel shifts its input, which
    only turns the two parts into each other. So nothing is lost about the taps, only detail of the
    gradient; over all frequencies the gradients would be exact. It serves kernels of many taps between many
    channels: layers for which it would not save half of the operations, as 1 × 1 and depthwise
    convolutions, stay exact.

    ``basis="walsh"`` with one component is gradient filtering as published: the gradient of the output is
    replaced with its mean :math:`\tilde g` over patches of :math:`r \times r` cells. Then the gradients of a
    convolution with stride s need only the sum of the weight over its taps, :math:`\tilde W`, and the sum of
    the input over windows of :math:`rs \times rs` cells, :math:`\tilde x`:

    .. math::
        \nabla x = \tilde W^T \tilde g / s^2 \text{ on every cell of the window}, \qquad
        \nabla W = \sum_p \tilde g_p \tilde x_p^T / s^2 \text{ for every tap}

    (Yang, Li, Marculescu, "Efficient On-device Training via Gradient Filtering", CVPR 2023, section 3; the
    division by :math:`s^2`, which the paper lacks, gives both gradients the mean of the exact ones). The
    products are :math:`r^2` times the number of taps smaller, and what is saved is :math:`(rs)^2` times
    smaller than the input. With more components, a patch keeps that many coefficients of a Walsh-Hadamard
    basis; each has its own weight (:func:`flower_edge.training.tap_symbols`). This brings to convolutions
    what Yang, Li, Marculescu, "Efficient Low-rank Backpropagation for Vision Transformer Adaptation",
    NeurIPS 2023, section 3, does to linear layers. It takes the least time and memory, also for depthwise
    layers, but all taps of a kernel get much the same gradient, and that costs accuracy: the paper's own
    ResNet-18 on ImageNet, four layers filtered, falls from 72.3 % to 68.5 %.

    Parameters
    ----------
    patch_size : int, optional
        Cells of the output along a side of a patch, r. Default: 8 for Fourier (tiles of a map are made equal,
        so they may be smaller), 2 for Walsh. For Walsh with more than one component: 2, 4, 8 or 16.
    components : int, optional
        Numbers that are kept of a patch, at most ``patch_size**2``. Default: 21 for Fourier, where it is odd;
        1 for Walsh.
    where : Last, AllButStem or callable, default last(4)
        Which convolutions: :func:`last`, :data:`all_but_stem`, or a callable that takes name and module.
    fallback : {"measured", "never"}, default "measured"
        "measured": the first training step with a new shape times both backward passes on its tensors, and a
        layer for which the exact one is faster uses it. The choice may then differ between machines and runs;
        "never" always filters, for runs that must be reproducible. What stays exact by count, from shapes
        alone, does so in any case.
    basis : {"fourier", "walsh"}, default "fourier"
        What is kept of a patch.

    Raises
    ------
    TypeError
        If a value is of the wrong type.
    ValueError
        If a number is out of its range, or there is no basis for the patch size.
    """

    # None until the basis has decided.
    patch_size: int = None  # type: ignore[assignment]
    components: int = None  # type: ignore[assignment]
    where: Where = _LAST_FOUR
    fallback: Literal["measured", "never"] = "measured"
    basis: Literal["fourier", "walsh"] = "fourier"

    def __post_init__(self) -> None:
        if self.basis not in _DEFAULTS:
            raise ValueError(f"basis is {self.basis!r}, expected 'fourier' or 'walsh'")
        for name, default in _DEFAULTS[self.basis].items():
            value = getattr(self, name)
            if value is None:
                object.__setattr__(self, name, default)
            elif isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name} is {value!r}, expected an int")
            elif value < 1:
                raise ValueError(f"{name} is {value}, expected at least 1")
        if self.components > self.patch_size**2:
            raise ValueError(
                f"components is {self.components}, expected at most {self.patch_size**2}, "
                f"the cells of a patch with patch_size={self.patch_size}"
            )
        if self.basis == "fourier":
            self._check_fourier()
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
