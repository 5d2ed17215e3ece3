"""The accuracy protocol on a tiny network and random images, against plain training loops."""

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from benchmarks.cifar import Images
from benchmarks.filter_cost import backward_cost
from benchmarks.fine_tuning import Batches, Budget, FineTuning, mix
from flower_edge.gossip import GossipPlan, full_graph_plan, ring
from flower_edge.training import GradientFilter, last, prepare_

BUDGET = Budget(images=64, epochs=2, batch=16, rate=0.1, test_images=40)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def images(n: int, seed: int) -> Images:
    rng = np.random.default_rng(seed)
    return Images(
        torch.from_numpy(rng.integers(0, 256, (n, 3, 8, 8), np.uint8)),
        torch.from_numpy(rng.integers(0, 10, n)),
    )


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.block = nn.Sequential(
            *(nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
            *(nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
        )
        self.fc = nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.block(self.stem(x)).mean((2, 3)))


def blocks(net: nn.Module) -> list[nn.Module]:
    assert isinstance(net, Net)
    return [net.stem, net.block, nn.AdaptiveAvgPool2d(1), nn.Flatten(), net.fc]


def task(first: str | None, nodes: int = 1, seed: int = 0) -> tuple[Net, FineTuning]:
    torch.manual_seed(5)
    net = Net()
    return net, FineTuning(net, blocks, first, images(80, 0), images(50, 1), BUDGET, seed, nodes)


def spied(run: Callable[[Callable[[nn.Module], object]], float]) -> tuple[float, list[nn.Module]]:
    """Run a method that changes nothing; return the accuracy and the trained models."""
    seen: list[nn.Module] = []
    return run(seen.append), seen


def plain(net: Net, batches: Batches, frozen: Callable[[Net], list[nn.Module]]) -> Net:
    """Train by a loop over the whole network, with nothing computed ahead."""
    net = copy.deepcopy(net).train()
    for module in frozen(net):
        module.eval().requires_grad_(False)
    trained = [parameter for parameter in net.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, 0.1, momentum=0.9, weight_decay=5e-4)
    for step, (x, y) in enumerate(batches):
        optimizer.param_groups[0]["lr"] = BUDGET.rate_at(step)
        optimizer.zero_grad()
        torch.autograd.backward(cross_entropy(net(x), y))
        optimizer.step()
    return net


def assert_same(found: nn.Module, wanted: nn.Module) -> None:
    for one, other in zip(found.state_dict().values(), wanted.state_dict().values(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_training_everything_is_the_plain_loop() -> None:
    net, fine_tuning = task(None)

    accuracy, (model,) = spied(fine_tuning.alone)

    expected = plain(net, fine_tuning.batches, lambda net: [])
    assert_same(model, expected)
    assert accuracy == fine_tuning.accuracy(expected)


def test_what_is_before_the_first_trained_layer_stays_as_it_was() -> None:
    net, fine_tuning = task("block.3")

    _, (model,) = spied(fine_tuning.alone)

    expected = plain(net, task(None)[1].batches, lambda net: [net.stem, net.block[0], net.block[1]])
    assert_same(model, nn.Sequential(*blocks(expected)[1:]))
    assert torch.equal(expected.block[0].weight, net.block[0].weight)
    assert torch.equal(expected.block[1].running_mean, net.block[1].running_mean)
    assert not torch.equal(expected.block[3].weight, net.block[3].weight)
    with pytest.raises(ValueError, match=r"block\.9"):
        task("block.9")


def test_every_run_begins_alike() -> None:
    _, fine_tuning = task("block.3")

    assert_same(spied(fine_tuning.alone)[1][0], spied(fine_tuning.alone)[1][0])
    assert not torch.equal(fine_tuning.batches[0][0], task("block.3", seed=1)[1].batches[0][0])


def test_a_gossip_of_nodes_that_always_average_is_one_node_with_mean_gradients() -> None:
    """Without normalisation; the nodes' momenta are linear in their gradients."""
    _, fine_tuning = task("fc", nodes=4)

    _, models = spied(
        lambda change: fine_tuning.gossip(change, GossipPlan.from_matrix(np.full((4, 4), 0.25)))
    )

    _, alone = spied(fine_tuning.alone)
    assert len(models) == 4
    for model in models:
        assert_same(model, alone[0])


def test_gossip_mixes_parameters_and_statistics_by_the_plan() -> None:
    _, fine_tuning = task(None, nodes=4)
    plan = full_graph_plan(ring(4))
    tensors = [[torch.randn(3, 2), torch.randn(5)] for _ in range(4)]
    expected = [
        [sum(float(weight) * tensors[j][k] for j, weight in plan.row(i, 0).items()) for k in range(2)]
        for i in range(4)
    ]

    mix(tensors, plan.matrix(0).toarray())

    for found, wanted in zip(tensors, expected, strict=True):
        for one, other in zip(found, wanted, strict=True):
            torch.testing.assert_close(one, other)
    _, models = spied(lambda change: fine_tuning.gossip(change, plan))
    means = torch.stack([model[0][1].running_mean for model in models])
    assert 0 < means.std(0).max() < 0.5


def test_nodes_draw_from_what_they_own() -> None:
    _, fine_tuning = task(None, nodes=4)

    assert len(fine_tuning.batches) == BUDGET.steps
    owners = [[set(y.chunk(4)[node].tolist()) for _, y in fine_tuning.batches] for node in range(4)]
    assert len({frozenset(set().union(*seen)) for seen in owners}) > 1, "label skew"


def test_the_rate_rises_and_falls() -> None:
    budget = Budget(images=1000, epochs=2, batch=10, rate=0.5)
    rates = [budget.rate_at(step) for step in range(budget.steps)]

    assert max(rates) == rates[19] == rates[20] == 0.5
    assert rates[0] == pytest.approx(0.025)
    assert rates[-1] < 0.001
    assert sorted(rates[20:], reverse=True) == rates[20:]


def test_costs_are_counted() -> None:
    """Last convolution: 8 to 8 channels, 3×3 taps, 8×8 cells, a batch of 5; nothing before it is trained."""
    net = Net()
    for module in (net.stem, net.block[0], net.block[1]):
        module.requires_grad_(False)
    prepare_(net, GradientFilter(2, 3, last(1), "measured", basis="walsh"))

    cost = backward_cost(net, torch.randn(5, 3, 8, 8))

    forward = 5 * 64 * 8 * 8 * 9
    assert cost.exact_operations == forward
    assert cost.filtered_operations == 3 * (5 * 16 * 8 * 8 + 2 * 5 * 64 * 8)
    assert cost.step_operations == 5 * 64 * 8 * 3 * 9 + 2 * forward + forward
    assert cost.share == forward / cost.step_operations
    assert cost.exact_seconds > 0
    assert cost.filtered_seconds > 0
