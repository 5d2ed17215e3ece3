"""What each tap of a kernel does to each function of the Walsh-Hadamard basis."""

from collections.abc import Sequence

import torch
from torch import Tensor

from flower_edge.kernels import walsh_basis


def tap_symbols(
    kernel_size: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    patch_size: int,
    components: int,
) -> Tensor:
    r"""Tell how strongly each tap of a convolution passes each component of a patch.

    A tap shifts the input. Within a patch of :math:`r \times r` cells, continued as its mirror image, the
    part of a shifted basis function that looks like the function itself is

    .. math:: M_{ut} = \frac{1}{r^2} \sum_i b_u(i)\, b_u(m_t(i))

    where :math:`m_t(i)` is the cell that tap :math:`t` reads for cell :math:`i`; a stride spreads the cells
    apart. The weight :math:`\tilde W_u = \sum_t M_{ut} W_t` then does to component :math:`u` what the
    convolution does to it. For :math:`u = 0` every tap passes the mean unchanged, which is the case of Yang,
    Li, Marculescu, CVPR 2023, section 3. For :math:`r = 2` and kernels that are their own mirror images
    nothing of a function goes to another one; otherwise the symbols are the diagonal of the convolution in
    this basis.

    Mirroring fits the data: on a trained ResNet-20, gradients with mirrored symbols point nearer to the exact
    ones than with periodic continuation, and these nearer than with one :math:`\tilde W` for all components.

    Parameters
    ----------
    kernel_size, stride, dilation : sequence of int
        Of the convolution, along height and width.
    patch_size : int
        Cells of the output along a side of a patch, r.
    components : int
        Number of basis functions.

    Returns
    -------
    Tensor
        Shape ``(components, kh * kw)``, float64, taps in row-major order; the first row is 1.

    Raises
    ------
    ValueError
        If there is no such basis.
    """
    basis = walsh_basis(patch_size, components, torch.float64, "cpu")
    rows, columns = (
        _shifted_cells(taps, step, spread, patch_size)
        for taps, step, spread in zip(kernel_size, stride, dilation, strict=True)
    )
    # Axes of shifted: function, tap and cell along the height, tap and cell along the width.
    shifted = basis[:, rows[:, :, None, None], columns]
    return torch.einsum("uij,uaibj->uab", basis, shifted).flatten(1) / patch_size**2


def _shifted_cells(taps: int, stride: int, dilation: int, patch_size: int) -> Tensor:
    """Give the cell of the patch that each tap reads for each cell of the output; shape (taps, cells)."""
    displacement = dilation * torch.arange(taps, device="cpu") - dilation * (taps - 1) // 2
    window = stride * patch_size
    place = (stride * torch.arange(patch_size, device="cpu") + displacement[:, None]) % (2 * window)
    return torch.where(place < window, place, 2 * window - 1 - place) // stride
