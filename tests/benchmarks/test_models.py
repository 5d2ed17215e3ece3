"""The networks for large images: published sizes, torchvision's names, and what tracers need."""

from collections.abc import Callable

import pytest
import torch
from torch import fx, nn

from benchmarks.gradient_filter import large_mobilenet
from benchmarks.networks import resnet18, resnet20

LARGE = {"resnet18": resnet18, "mobilenet_v2": large_mobilenet}


def names_of(tensors: dict[str, torch.Tensor], module: str) -> set[str]:
    return {name.removeprefix(f"{module}.") for name in tensors if name.startswith(f"{module}.")}


@pytest.mark.parametrize(("build", "published"), [(resnet18, 11_689_512), (large_mobilenet, 3_504_872)])
def test_sizes_are_the_published_ones(build: Callable[[int], nn.Module], published: int) -> None:
    with torch.device("meta"):
        model = build(1000)

    assert sum(parameter.numel() for parameter in model.parameters()) == published


def test_parameters_have_torchvisions_names() -> None:
    """Number of tensors and the names where layouts differ: stem, shortcuts, both ends of the stages."""
    with torch.device("meta"):
        resnet, mobilenet = resnet18(1000).state_dict(), large_mobilenet(1000).state_dict()

    assert len(resnet) == 122
    assert names_of(resnet, "layer1.0") == names_of(resnet, "layer4.1")
    assert "layer1.0.downsample.0.weight" not in resnet
    norm = {"1.weight", "1.bias", "1.running_mean", "1.running_var", "1.num_batches_tracked"}
    assert names_of(resnet, "layer4.0.downsample") == {"0.weight"} | norm
    assert resnet["layer4.0.downsample.0.weight"].shape == (512, 256, 1, 1)
    assert resnet["fc.weight"].shape == (1000, 512)
    assert len(mobilenet) == 314
    assert mobilenet["features.1.conv.0.0.weight"].shape == (32, 1, 3, 3)
    assert mobilenet["features.2.conv.1.0.weight"].shape == (96, 1, 3, 3)
    assert mobilenet["features.17.conv.2.weight"].shape == (320, 960, 1, 1)
    assert mobilenet["features.18.0.weight"].shape == (1280, 320, 1, 1)
    assert mobilenet["classifier.1.weight"].shape == (1000, 1280)


@pytest.mark.parametrize("network", LARGE)
def test_maps_shrink_by_32_and_tracing_changes_nothing(network: str) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = LARGE[network](7).eval()
    x = torch.randn(1, 3, 64, 64)
    seen = []
    model.get_submodule("avgpool").register_forward_hook(
        lambda module, inputs, y: seen.append(inputs[0].shape[2:])
    )

    traced = fx.symbolic_trace(model)

    assert model(x).shape == (1, 7)
    assert seen == [(2, 2)]
    torch.testing.assert_close(traced(x), model(x))


def test_activations_keep_their_size_through_standard_initialisation() -> None:
    """He's rule: neither vanishing nor exploding, here behind 20 layers that add up."""
    torch.manual_seed(0)
    model = resnet20(10)

    logits = model(torch.randn(8, 3, 32, 32))

    assert 0.05 < logits.std() < 20
    assert all(bool((m.weight == 1).all()) for m in model.modules() if isinstance(m, nn.BatchNorm2d))
