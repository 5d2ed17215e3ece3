"""Model, data and training, as in any Flower and PyTorch app."""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset, random_split


class Net(nn.Module):
    """A small CNN for 8x8 digits."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.head = nn.Linear(16 * 4 * 4, 10)

    def forward(self, x):
        x = functional.max_pool2d(functional.relu(self.norm(self.conv(x))), 2)
        return self.head(x.flatten(1))


def load_data(partition_id: int, num_partitions: int, batch_size: int):
    """Load this node's share of the digits: 80 % to train, 20 % to test."""
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[partition_id::num_partitions, None] / 16
    labels = torch.tensor(digits.target)[partition_id::num_partitions]
    parts = random_split(TensorDataset(images, labels), [0.8, 0.2], torch.Generator().manual_seed(42))
    return DataLoader(parts[0], batch_size=batch_size, shuffle=True), DataLoader(
        parts[1], batch_size=batch_size
    )


def load_centralized_dataset():
    """Load all digits, for evaluation at the ServerApp."""
    return load_data(0, 1, 256)[1]


def train(net, trainloader, epochs, lr, device):
    """Train the model on the training set."""
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9)
    net.train()
    running_loss = 0.0
    for _ in range(epochs):
        for images, labels in trainloader:
            optimizer.zero_grad()
            loss = functional.cross_entropy(net(images.to(device)), labels.to(device))
            loss.backward()
            optimizer.step()
            running_loss += loss.item()
    return running_loss / (epochs * len(trainloader))


def test(net, testloader, device):
    """Validate the model on the test set."""
    net.eval()
    correct, loss = 0, 0.0
    with torch.no_grad():
        for images, labels in testloader:
            outputs = net(images.to(device))
            loss += functional.cross_entropy(outputs, labels.to(device)).item()
            correct += (outputs.argmax(1) == labels.to(device)).sum().item()
    return loss / len(testloader), correct / len(testloader.dataset)
