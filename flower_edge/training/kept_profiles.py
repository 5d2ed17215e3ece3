"""Profiles that are measured once and kept on disk, one for each model and device."""

import hashlib
import json
import os
import re
import uuid
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_leaves

from flower_edge.training._device import device_name
from flower_edge.training._measurement import Progress
from flower_edge.training._profile_json import MAX_CHARACTERS
from flower_edge.training._recorder import Loss
from flower_edge.training.profile import Profile, profile

_ADDRESS = re.compile(r"\b0x[0-9a-f]+\b")
_RATES = frozenset({"params", "param_names", "lr", "initial_lr"})
"""Settings of an optimizer that change in training, or name what it trains."""


def kept_profile(
    model: nn.Module,
    batch: tuple[Any, Any],
    loss: Loss,
    folder: str | os.PathLike[str],
    *,
    optimizer: Optimizer | None = None,
    progress: Progress | None = None,
) -> Profile:
    """Read the profile of a model on this device from a folder; measure and write it if it is not there.

    A file is for one model, layer by layer (names, shapes, settings, prepared methods, which parameters are
    trainable, mode), one shape of batch, one kind of loss and of optimizer, one device, number of threads and
    version of torch. A file that is damaged, or of something else, is measured anew.

    Parameters
    ----------
    model, batch, loss, optimizer, progress
        As :func:`profile` takes them.
    folder : path
        Made if it is not there. Files are written whole or not at all; several processes may share it.

    Returns
    -------
    Profile

    Raises
    ------
    ValueError
        As :func:`profile`.
    OSError
        If the folder cannot be made. If only the file cannot be written, a warning says so.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{_key(model, batch, loss, optimizer)}.json"
    known = _read(path, model)
    if known is not None:
        return known
    measured = profile(model, batch, loss, optimizer=optimizer, progress=progress)
    try:
        _write(path, measured.to_json())
    except OSError as error:
        warnings.warn(f"the profile could not be kept in {path}: {error.strerror}", stacklevel=2)
    return measured


def _key(model: nn.Module, batch: Any, loss: Loss, optimizer: Optimizer | None) -> str:
    described = {
        "model": _ADDRESS.sub("", repr(model)),
        "parameters": [
            [name, *_layout(parameter), parameter.requires_grad]
            for name, parameter in model.named_parameters()
        ],
        "training": [name for name, module in model.named_modules() if module.training],
        "batch": [_layout(value) for value in tree_leaves(batch) if isinstance(value, Tensor)],
        "loss": getattr(loss, "__qualname__", type(loss).__qualname__),
        "optimizer": None if optimizer is None else _optimizer(optimizer),
        "here": [device_name(), torch.get_num_threads(), torch.__version__],
    }
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:32]


def _layout(tensor: Tensor) -> list[Any]:
    return [list(tensor.shape), list(tensor.stride()), str(tensor.dtype)]


def _optimizer(optimizer: Optimizer) -> list[Any]:
    """Describe what a step costs: which settings are in use, not how large they are."""
    return [
        type(optimizer).__qualname__,
        *(
            {name: bool(value) for name, value in group.items() if name not in _RATES}
            | {"sizes": [parameter.numel() for parameter in group["params"]]}
            for group in optimizer.param_groups
        ),
    ]


def _read(path: Path, model: nn.Module) -> Profile | None:
    """Return the profile of a file, or None if it is not there or not whole."""
    try:
        with path.open(encoding="utf-8") as file:
            known = Profile.from_json(file.read(MAX_CHARACTERS + 1), model)
        known.check_here()
    except (OSError, ValueError):
        return None
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    return known if trainable.issuperset(tensor.name for tensor in known.tensors) else None


def _write(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        with partial.open("x", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
