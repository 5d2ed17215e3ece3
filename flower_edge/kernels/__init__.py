"""Compiled kernels behind a typed Python face, each with a slow twin in numpy or torch.

The extension ``flower_edge._kernels`` chooses the best version for this CPU at run time and runs in torch's
thread pool. Where it is missing the slow twins run instead; :func:`explain` says what runs and why.
"""

from flower_edge.kernels._batch_norm import NormalisedBatch, batch_norm, batch_norm_backward
from flower_edge.kernels._conv import conv_filter_backward, conv_filter_backward_reference
from flower_edge.kernels._dispatch import Explanation, available_isas, explain, use_isa
from flower_edge.kernels._grid import walsh_basis
from flower_edge.kernels._mix import mix, mix_reference
from flower_edge.kernels._patches import depthwise_filter_backward, patch_fill, patch_means, patch_sums
from flower_edge.kernels._patches_reference import (
    depthwise_filter_backward_reference,
    patch_fill_reference,
    patch_means_reference,
    patch_sums_reference,
)
from flower_edge.kernels._pruned import PackedSigns, PrunedGradient
from flower_edge.kernels._quantised_range_evonorm import (
    quantised_range_evonorm,
    quantised_range_evonorm_backward,
)
from flower_edge.kernels._range_evonorm import range_evonorm, range_evonorm_backward
from flower_edge.kernels._range_evonorm_calls import NormGradients
from flower_edge.kernels._sign_bits import (
    mask_by_bits,
    mask_by_bits_reference,
    relu_bits,
    relu_bits_,
    relu_bits_reference,
)
from flower_edge.kernels._sparse_backward import SparseGradients, sparse_backward
from flower_edge.kernels._sparse_grad import (
    pack_signs,
    prune,
    pruning_threshold,
    sparse_grad_input,
    sparse_grad_weight,
)
from flower_edge.kernels._sparse_grad_reference import (
    pack_signs_reference,
    prune_reference,
    pruning_threshold_reference,
    sparse_grad_input_reference,
    sparse_grad_weight_reference,
)
from flower_edge.kernels._taps import (
    collapse_taps,
    collapse_taps_reference,
    spread_taps,
    spread_taps_reference,
)

__all__ = [
    "Explanation",
    "NormGradients",
    "NormalisedBatch",
    "PackedSigns",
    "PrunedGradient",
    "SparseGradients",
    "available_isas",
    "batch_norm",
    "batch_norm_backward",
    "collapse_taps",
    "collapse_taps_reference",
    "conv_filter_backward",
    "conv_filter_backward_reference",
    "depthwise_filter_backward",
    "depthwise_filter_backward_reference",
    "explain",
    "mask_by_bits",
    "mask_by_bits_reference",
    "mix",
    "mix_reference",
    "pack_signs",
    "pack_signs_reference",
    "patch_fill",
    "patch_fill_reference",
    "patch_means",
    "patch_means_reference",
    "patch_sums",
    "patch_sums_reference",
    "prune",
    "prune_reference",
    "pruning_threshold",
    "pruning_threshold_reference",
    "quantised_range_evonorm",
    "quantised_range_evonorm_backward",
    "range_evonorm",
    "range_evonorm_backward",
    "relu_bits",
    "relu_bits_",
    "relu_bits_reference",
    "sparse_backward",
    "sparse_grad_input",
    "sparse_grad_input_reference",
    "sparse_grad_weight",
    "sparse_grad_weight_reference",
    "spread_taps",
    "spread_taps_reference",
    "use_isa",
    "walsh_basis",
]
