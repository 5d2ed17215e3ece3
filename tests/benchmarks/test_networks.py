"""The small networks: known sizes, their blocks, and checkpoints that come back as they were."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks.cifar import Images
from benchmarks.networks import blocks, mobilenet_v2, resnet20
from benchmarks.pretrain import NETWORKS, RECIPES, Recipe, accuracy, pretrained, save, train


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_sizes_are_the_published_ones() -> None:
    """0.27 M of ResNet-20 (He et al., table 6), with projections; MobileNetV2's 2.2 M without its head."""
    assert parameters(resnet20(10)) == 272_474
    full = mobilenet_v2(1000, width=1.0)
    assert parameters(full) == 3_504_872
    assert parameters(mobilenet_v2(10, width=0.5)) == 700_490


def test_parameters_have_torchvisions_names() -> None:
    assert {"conv1.weight", "layer2.0.downsample.1.bias", "layer3.2.bn2.running_var", "fc.weight"} <= set(
        resnet20(10).state_dict()
    )
    names = set(mobilenet_v2(10, 0.5).state_dict())
    assert {"features.0.1.weight", "features.1.conv.0.0.weight", "features.1.conv.1.weight"} <= names
    assert {"features.17.conv.2.weight", "features.18.0.weight", "classifier.1.bias"} <= names


@pytest.mark.parametrize("network", NETWORKS)
def test_blocks_one_after_the_other_are_the_network(network: str) -> None:
    model = NETWORKS[network]().eval()
    x = torch.randn(2, 3, 32, 32)

    before_pooling = nn.Sequential(*blocks(model)[: 12 if network == "resnet20" else 19])

    torch.testing.assert_close(nn.Sequential(*blocks(model))(x), model(x))
    assert before_pooling(x).shape[2:] == ((8, 8) if network == "resnet20" else (4, 4))


def test_training_learns_and_a_checkpoint_comes_back(tmp_path: Path) -> None:
    """Two classes, black and white: one epoch suffices."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    labels = torch.arange(128) % 2
    images = Images((255 * labels.byte())[:, None, None, None].expand(-1, 3, 32, 32), labels)
    model = resnet20(10).to(memory_format=torch.channels_last)

    (reached,) = train(model, images, images, Recipe(epochs=1, batch=8, peak_rate=0.02, bfloat16=False))
    save(model, tmp_path / "made" / "resnet20.safetensors", {"test_accuracy": reached})

    assert reached == 1.0
    again = pretrained("resnet20", tmp_path / "made")
    assert accuracy(again, images) == 1.0
    assert json.loads((tmp_path / "made" / "resnet20.json").read_text()) == {"test_accuracy": 1.0}
    for name, value in again.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name
    with pytest.raises(ValueError, match="expected at most"):
        save(nn.Linear(2000, 1000), tmp_path / "large.safetensors", {})


@pytest.mark.parametrize("network", NETWORKS)
def test_committed_checkpoints_fit_their_networks(network: str) -> None:
    model = pretrained(network)

    about = json.loads(
        (Path(__file__).parents[2] / "benchmarks" / "checkpoints" / f"{network}.json").read_text()
    )
    assert about["parameters"] == parameters(model)
    assert about["recipe"]["epochs"] == RECIPES[network].epochs
    assert about["test_accuracy"] > 0.7
