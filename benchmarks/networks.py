"""The networks of the training benchmarks, with torchvision's layout and parameter names."""

from collections import OrderedDict

from torch import Tensor, nn


class BasicBlock(nn.Module):
    """Two 3×3 convolutions beside a shortcut (He, Zhang, Ren, Sun, CVPR 2016)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Add the shortcut to what the convolutions make of x."""
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        shortcut = x if self.downsample is None else self.downsample(x)
        out: Tensor = self.relu(y + shortcut)
        return out


class InvertedResidual(nn.Module):
    """Expansion, depthwise 3×3 convolution and projection (Sandler et al., CVPR 2018)."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        layers = [] if expansion == 1 else [_conv_bn_relu6(inputs, hidden, 1)]
        layers += [
            _conv_bn_relu6(hidden, hidden, 3, stride, groups=hidden),
            nn.Conv2d(hidden, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        ]
        self.conv = nn.Sequential(*layers)
        self.has_shortcut = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """Add x itself where the shapes allow it."""
        y: Tensor = self.conv(x)
        return x + y if self.has_shortcut else y


def resnet20(classes: int) -> nn.Module:
    """Return ResNet-20 (He, Zhang, Ren, Sun, CVPR 2016, section 4.2) with projections as shortcuts."""
    stages: OrderedDict[str, nn.Module] = OrderedDict(
        conv1=nn.Conv2d(3, 16, 3, padding=1, bias=False), bn1=nn.BatchNorm2d(16), relu=nn.ReLU(inplace=True)
    )
    inputs = 16
    for stage, outputs in enumerate((16, 32, 64), start=1):
        first = BasicBlock(inputs, outputs, stride=1 if stage == 1 else 2)
        others = [BasicBlock(outputs, outputs, stride=1) for _ in range(2)]
        stages[f"layer{stage}"] = nn.Sequential(first, *others)
        inputs = outputs
    stages.update(avgpool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), fc=nn.Linear(inputs, classes))
    return _initialised(nn.Sequential(stages))


def resnet18(classes: int, small_images: bool = False) -> nn.Module:
    """Return ResNet-18 (He, Zhang, Ren, Sun, CVPR 2016, table 1).

    Parameters
    ----------
    classes : int
        Outputs.
    small_images : bool, default False
        Begin with a 3×3 convolution of stride 1 and no pooling, so that 32×32 images end as maps of 4×4.
    """
    stem = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
    if small_images:
        stem = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    stages: OrderedDict[str, nn.Module] = OrderedDict(
        conv1=stem, bn1=nn.BatchNorm2d(64), relu=nn.ReLU(inplace=True)
    )
    if not small_images:
        stages["maxpool"] = nn.MaxPool2d(3, stride=2, padding=1)
    inputs = 64
    for stage, outputs in enumerate((64, 128, 256, 512), start=1):
        first = BasicBlock(inputs, outputs, stride=1 if stage == 1 else 2)
        stages[f"layer{stage}"] = nn.Sequential(first, BasicBlock(outputs, outputs, stride=1))
        inputs = outputs
    stages.update(avgpool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), fc=nn.Linear(inputs, classes))
    return _initialised(nn.Sequential(stages))


def mobilenet_v2(classes: int, width: float, small_images: bool = True) -> nn.Module:
    """Return MobileNetV2 (Sandler et al., CVPR 2018, table 2).

    Parameters
    ----------
    classes : int
        Outputs.
    width : float
        Factor of the channels of all layers but the last convolution, rounded to multiples of 8.
    small_images : bool, default True
        Give stride 1 to the stem and the stage of 160 channels, so that 32×32 images end as maps of 4×4.
    """
    large_stride = 1 if small_images else 2
    inputs = _channels(32 * width)
    features = [_conv_bn_relu6(3, inputs, 3, large_stride)]
    for expansion, channels, repeats, stride in (
        *((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2)),
        *((6, 96, 3, 1), (6, 160, 3, large_stride), (6, 320, 1, 1)),
    ):
        outputs = _channels(channels * width)
        for repeat in range(repeats):
            features.append(InvertedResidual(inputs, outputs, stride if repeat == 0 else 1, expansion))
            inputs = outputs
    last = max(1280, _channels(1280 * width))
    features.append(_conv_bn_relu6(inputs, last, 1))
    parts: OrderedDict[str, nn.Module] = OrderedDict(
        features=nn.Sequential(*features),
        avgpool=nn.AdaptiveAvgPool2d(1),
        flatten=nn.Flatten(),
        classifier=nn.Sequential(nn.Dropout(0.2), nn.Linear(last, classes)),
    )
    return _initialised(nn.Sequential(parts))


def blocks(model: nn.Module) -> list[nn.Module]:
    """Return the modules, none of them `nn.Sequential`'s stages, that are a network one after the other."""
    parts = (list(part) if isinstance(part, nn.Sequential) else [part] for part in model.children())
    return [block for part in parts for block in part]


def _conv_bn_relu6(
    inputs: int, outputs: int, kernel_size: int, stride: int = 1, groups: int = 1
) -> nn.Module:
    padding = kernel_size // 2
    convolution = nn.Conv2d(inputs, outputs, kernel_size, stride, padding, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU6(inplace=True))


def _channels(wanted: float) -> int:
    """Round to a multiple of 8, by no more than a tenth downwards."""
    rounded = max(8, int(wanted + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * wanted else rounded


def _initialised(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return model
