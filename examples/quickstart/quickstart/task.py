"""The model and its data: all that you would change for a task of your own."""

from collections.abc import Sequence

from flwr.app import Context
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Subset

from flower_edge.clients import Elastic
from flower_edge.training import GradientFilter, Method, SignFeedback, Time, all_but_stem
from quickstart.data import load_dataset, partition

METHODS: dict[str, Sequence[Method]] = {
    "none": (),
    # "measured" would use it only where it is faster, but then two runs may train different models.
    "gradient-filter": (GradientFilter(patch_size=2, where=all_but_stem, fallback="never", basis="walsh"),),
    "sign-feedback": (SignFeedback(feedback="sign", where=all_but_stem, fallback="never"),),
}


class Net(nn.Module):
    """A small CNN for RGB images of any size."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1),
            nn.GroupNorm(4, 16),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.GroupNorm(4, 32),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(4),
            nn.Flatten(),
            nn.Linear(32 * 4 * 4, 128),
            nn.ReLU(),
            nn.Linear(128, 10),
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images / 127.5 - 1)


def loss(outputs: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy; smoothed, because a node that has few classes soon becomes too sure of them."""
    return cross_entropy(outputs, labels, label_smoothing=0.1)


def methods(context: Context) -> Sequence[Method]:
    """Return how the model trains cheaply; what is asked of `context` may differ from node to node."""
    name = context.run_config["method"]
    if name not in METHODS:
        raise ValueError(f"method is {name!r}; expected one of {', '.join(METHODS)}")
    return METHODS[name]


def elastic(context: Context) -> Elastic | None:
    """Return how a node chooses what it trains, None to train everything; it may differ from node to node."""
    share = context.run_config["elastic-budget"]
    return Elastic(Time(share)) if share else None


def load_data(context: Context) -> tuple[DataLoader, DataLoader]:
    """Return this node's training batches, and the test batches that all nodes share."""
    config, node = context.run_config, context.node_config
    name, path = config["dataset"], config["data-path"]
    train, test = load_dataset(name, path)
    rows = partition(name, path, node["num-partitions"], config["alpha"], config["seed"])
    own = Subset(train, rows[node["partition-id"]])
    return DataLoader(own, config["batch-size"], shuffle=True), DataLoader(test, 500)
