"""Pre-trains the networks of the accuracy benchmarks on CIFAR-10's classes 0 to 4.

``python -m benchmarks.pretrain NETWORK --data FOLDER`` writes ``benchmarks/checkpoints/NETWORK.safetensors``
and, beside it, a JSON file that says how it was made and how good it is.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from benchmarks.cifar import CLASSES, Images, cifar10, data_option
from benchmarks.harness import machine
from benchmarks.networks import mobilenet_v2, resnet20

CHECKPOINTS = Path(__file__).parent / "checkpoints"
SEEN = range(5)
LARGEST_CHECKPOINT = 5_000_000
"""Bytes: checkpoints are part of the repository."""

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "resnet20": lambda: resnet20(CLASSES),
    "mobilenet_v2": lambda: mobilenet_v2(CLASSES, width=0.5),
}


@dataclass(frozen=True)
class Recipe:
    """How a network is trained: SGD with Nesterov momentum and one cycle of the learning rate (Smith 2018).

    Attributes
    ----------
    epochs : int
        Passes over the training images.
    batch : int, default 128
        Images a step.
    peak_rate : float, default 0.4
        Highest learning rate, reached after a quarter of the steps.
    weight_decay : float, default 5e-4
        Of weights of layers; scales and shifts of normalisation layers and biases have none.
    momentum : float, default 0.9
        Nesterov's.
    bfloat16 : bool, default True
        Whether layers run in bfloat16; parameters stay float32.
    seed : int, default 0
        Of the initial parameters and everything drawn later.
    """

    epochs: int
    batch: int = 128
    peak_rate: float = 0.4
    weight_decay: float = 5e-4
    momentum: float = 0.9
    bfloat16: bool = True
    seed: int = 0


RECIPES = {
    "resnet20": Recipe(epochs=20),
    # Depthwise convolutions are slower in bfloat16 on a CPU, and want less decay.
    "mobilenet_v2": Recipe(epochs=8, peak_rate=0.2, weight_decay=1e-4, bfloat16=False),
}


def optimizer_of(model: nn.Module, rate: float, momentum: float, weight_decay: float) -> torch.optim.SGD:
    """Return SGD over a model's trainable parameters, with decay for weights of layers alone."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.SGD(
        [
            {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
            {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
        ],
        lr=rate,
        momentum=momentum,
        nesterov=True,
    )


def accuracy(model: nn.Module, images: Images, batch: int = 500) -> float:
    """Return the share of images that a model gets right; it is left in evaluation mode."""
    model.eval()
    with torch.inference_mode():
        right = sum(int((model(x).argmax(1) == y).sum()) for x, y in images.batches(batch))
    return right / len(images)


def train(model: nn.Module, images: Images, test: Images, recipe: Recipe) -> list[float]:
    """Train a model in place; return its test accuracy after each epoch."""
    generator = torch.Generator().manual_seed(recipe.seed)
    optimizer = optimizer_of(model, recipe.peak_rate, recipe.momentum, recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        recipe.peak_rate,
        total_steps=recipe.epochs * (len(images) // recipe.batch),
        pct_start=0.25,
        cycle_momentum=False,
    )
    reached = []
    for epoch in range(recipe.epochs):
        model.train()
        start = time.perf_counter()
        for x, y in images.shuffled(recipe.batch, generator):
            with torch.autocast("cpu", torch.bfloat16, enabled=recipe.bfloat16):
                outputs = model(x)
            loss = cross_entropy(outputs.float(), y, label_smoothing=0.1)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
        speed = len(images) / (time.perf_counter() - start)
        reached.append(accuracy(model, test))
        print(
            f"epoch {epoch + 1}/{recipe.epochs}: loss {loss.item():.3f}, test {reached[-1]:.4f}, "
            f"{speed:.0f} images/s",
            flush=True,
        )
    return reached


def channels_last(model: nn.Module) -> nn.Module:
    """Lay out a network's weights as its channels-last activations want them, in place."""
    for parameter in model.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return model


def pretrained(network: str, folder: Path = CHECKPOINTS) -> nn.Module:
    """Return a network with the parameters of its checkpoint, in channels-last layout.

    Parameters
    ----------
    network : str
        A key of `NETWORKS`.
    folder : Path, default benchmarks/checkpoints
        Where the checkpoint is.

    Raises
    ------
    FileNotFoundError
        If it is not there.
    """
    from safetensors.torch import load_file

    model = NETWORKS[network]()
    model.load_state_dict(load_file(folder / f"{network}.safetensors"))
    return channels_last(model)


def save(model: nn.Module, path: Path, about: dict[str, object]) -> None:
    """Write a checkpoint and, beside it, what is to be known about it.

    Raises
    ------
    ValueError
        If it is larger than `LARGEST_CHECKPOINT`.
    """
    from safetensors.torch import save as serialised

    content = serialised({name: value.contiguous() for name, value in model.state_dict().items()})
    if len(content) > LARGEST_CHECKPOINT:
        raise ValueError(f"{path.name} has {len(content)} bytes, expected at most {LARGEST_CHECKPOINT}")
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    path.with_suffix(".json").write_text(json.dumps(about, indent=1) + "\n")


def main() -> None:
    """Train one network and write its checkpoint."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.pretrain", description=__doc__, parents=[data_option()]
    )
    parser.add_argument("network", choices=NETWORKS)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    recipe = RECIPES[options.network]
    torch.manual_seed(recipe.seed)
    model = channels_last(NETWORKS[options.network]())
    images, test = (part.of_classes(SEEN) for part in cifar10(options.data))
    start = time.perf_counter()
    reached = train(model, images, test, recipe)
    about = {
        "network": options.network,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "training_images": len(images),
        "classes": list(SEEN),
        "recipe": asdict(recipe),
        "test_accuracy": reached[-1],
        "test_accuracy_after_each_epoch": reached,
        "seconds": round(time.perf_counter() - start),
        "machine": machine(),
    }
    save(model, CHECKPOINTS / f"{options.network}.safetensors", about)


if __name__ == "__main__":
    main()
