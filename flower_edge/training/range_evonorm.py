"""Range-EvoNorm as a layer: a normalisation with its activation that knows nothing of the batch."""

import math

import torch
from torch import Tensor, nn

from flower_edge.training._range_evonorm_ops import range_evonorm


class RangeEvoNorm(nn.Module):
    r"""Normalise groups of channels by their range, and activate: in place of BatchNorm2d and ReLU.

    .. math:: y = \gamma\, s\, x\, \mathrm{clip}(v x / 6 + 1/2, 0, 1) + \beta, \quad s = 1 / (c R + \epsilon),

    with :math:`\gamma, \beta, v` for each channel and s for each sample and group. A group has the m elements
    of C / `groups` neighbouring channels of one sample, and
    :math:`c = 0.175\, (1 + \sqrt{\pi \ln 4}) / \sqrt{2 \ln m}`. R is the mean over K chunks of max - min: the
    H·W pixels, row by row, are cut into K = min(16, H·W) chunks of neighbours, chunk k beginning at pixel
    floor(k·H·W / K), and a chunk has all channels of its group. The gradient through max and min goes to the
    first element that is extreme.

    It has no statistics of the batch and no running ones: it is the same in train and eval mode and on any
    batch size, and says nothing about a node's data that other nodes would have to agree with. It is meant
    for decentralised training under strong label skew (Aketi, Kodge, Roy, 2021).

    Inputs may be float32, float64, or halves, which are computed in float32; under autocast the dtype of the
    input is kept. Saved for the backward pass are the input and 2·K numbers for each sample and group. Second
    derivatives are refused. A NaN or infinity makes its group meaningless.

    Parameters
    ----------
    num_channels : int
        C.
    groups : int, default 8
        Divides C.
    eps : float, default 1e-5
        :math:`\epsilon`, above 0. A group whose elements are all equal is multiplied by its inverse.
    affine : bool, default True
        Whether there are :math:`\gamma` and :math:`\beta`, here `weight` and `bias`.
    activation : bool, default True
        Whether to activate. Without, :math:`y = \gamma s x + \beta`, and there is no `v`: for where another
        operation comes before the activation, as in a residual block.
    device, dtype : optional
        Of the parameters.

    Attributes
    ----------
    weight, bias : Parameter or None
        Shape ``(C,)``, at first 1 and 0.
    v : Parameter or None
        Shape ``(C,)``, at first 1.

    Raises
    ------
    ValueError
        If `groups` does not divide `num_channels`, or `eps` is not above 0.
    """

    def __init__(
        self,
        num_channels: int,
        groups: int = 8,
        eps: float = 1e-5,
        affine: bool = True,
        activation: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if groups < 1 or num_channels < 1 or num_channels % groups:
            raise ValueError(
                f"groups is {groups}, expected a divisor of num_channels, which is {num_channels}"
            )
        if not 0.0 < eps < math.inf:
            raise ValueError(f"eps is {eps}, expected a positive finite number")
        self.num_channels, self.groups, self.eps = num_channels, groups, eps
        self.affine, self.activation = affine, activation
        for name, exists in (("weight", affine), ("bias", affine), ("v", activation)):
            made = nn.Parameter(torch.empty(num_channels, device=device, dtype=dtype)) if exists else None
            self.register_parameter(name, made)
        self.reset_parameters()

    weight: nn.Parameter | None
    bias: nn.Parameter | None
    v: nn.Parameter | None

    def reset_parameters(self) -> None:
        """Set `weight` and `v` to 1 and `bias` to 0."""
        for parameter, value in ((self.weight, 1.0), (self.bias, 0.0), (self.v, 1.0)):
            if parameter is not None:
                nn.init.constant_(parameter, value)

    def forward(self, input: Tensor) -> Tensor:
        """Normalise a batch of shape ``(N, C, H, W)``; channels last is fastest."""
        self.check_input(input)
        return range_evonorm(input, self.weight, self.bias, self.v, self.groups, self.eps)

    def check_input(self, input: Tensor) -> None:
        """Refuse what is no map of this layer's channels."""
        if input.dim() != 4 or input.shape[1] != self.num_channels:
            raise ValueError(f"input has shape {tuple(input.shape)}, expected (N, {self.num_channels}, H, W)")

    def extra_repr(self) -> str:
        """Describe the layer."""
        return (
            f"{self.num_channels}, groups={self.groups}, eps={self.eps}, affine={self.affine}, "
            f"activation={self.activation}"
        )
