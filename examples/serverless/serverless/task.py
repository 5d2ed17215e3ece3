"""The model and its data: change these for a task of your own."""

import torch
from flwr.app import Context
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

loss = nn.functional.cross_entropy


class Net(nn.Sequential):
    """A small network for digits of 8×8 pixels."""

    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


def load_data(context: Context) -> tuple[DataLoader, DataLoader]:
    """Deal out the digits: each board has a part of them to train with, and all share what is to test."""
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32) / 16
    labels = torch.tensor(digits.target)
    part = slice(int(context.node_config["partition-id"]), 1500, int(context.node_config["num-partitions"]))
    train = DataLoader(TensorDataset(images[part], labels[part]), batch_size=32, shuffle=True)
    return train, DataLoader(TensorDataset(images[1500:], labels[1500:]), batch_size=512)
