"""What training steps cost on this machine, measured once."""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from flower_edge.clients.local_training import BatchFunction
from flower_edge.training import Profile, kept_profile, profile


class Profiles:
    """Profiles by model, shape of batch and optimizer, kept as long as this process lives."""

    def __init__(self) -> None:
        self._known: dict[Hashable, Profile] = {}

    def of(
        self,
        net: nn.Module,
        batch: tuple[Tensor, Tensor],
        loss: BatchFunction,
        optimizer: Optimizer,
        folder: str | Path | None = None,
    ) -> Profile:
        """Return what a step costs; measured if that is not known here, nor in `folder` if one is given.

        Raises
        ------
        ValueError
            If the model cannot be profiled.
        OSError
            If the folder cannot be made.
        """
        key = (
            # Shows layers, prepared methods and settings.
            repr(net),
            tuple((name, p.shape, p.requires_grad) for name, p in net.named_parameters()),
            tuple((tensor.shape, tensor.dtype) for tensor in batch),
            type(optimizer),
            torch.get_num_threads(),
        )
        if key not in self._known:
            self._known[key] = (
                profile(net, batch, loss, optimizer=optimizer)
                if folder is None
                else kept_profile(net, batch, loss, folder, optimizer=optimizer)
            )
        return self._known[key]
