"""What benchmarks compare with torch's backward pass is the same gradient, as far as nothing is pruned."""

import pytest
import torch

from benchmarks.sparse_grad_layers import RESNET18_SMALL, Layer, Problem, mean_times_faster


@pytest.mark.parametrize("layer", [RESNET18_SMALL[3], RESNET18_SMALL[6], Layer(7, 9, 6, 1, 2, 2)], ids=str)
def test_without_pruning_gradients_are_torchs(layer: Layer) -> None:
    problem = Problem.of(layer, torch.channels_last)
    for ours, dense in zip(problem.sparse(0.0, "exact")(), problem.dense()(), strict=True):
        torch.testing.assert_close(ours, dense, rtol=1e-4, atol=1e-4 * float(dense.abs().max()))


def test_pruned_gradients_point_where_torchs_do() -> None:
    problem = Problem.of(RESNET18_SMALL[2], torch.channels_last)
    dense = problem.dense()()
    for feedback, least in (("exact", 0.5), ("sign", 0.4)):
        grad_x, grad_weight = problem.sparse(0.8, feedback)()
        for ours, exact, bound in zip((grad_x, grad_weight), dense, (least, 0.5), strict=True):
            cosine = torch.cosine_similarity(ours.flatten(), exact.flatten(), 0)
            # Of gaussian numbers with a fifth left, about 0.58; times 0.8 for their signs.
            assert bound < float(cosine) < 0.7


def test_the_mean_is_geometric() -> None:
    rows = [
        {"times_faster": factor, "sparsity": sparsity} for factor, sparsity in ((2, 0.8), (8, 0.8), (3, 0.9))
    ]
    assert mean_times_faster(rows, sparsity=0.8) == pytest.approx(4)
