"""Running a model's training step without leaving a trace in it."""

import copy
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from flower_edge.training.pruning import pruners


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Restore, at the end, what training steps without an optimizer change.

    Those are buffers (their tensors stay the same objects), gradients, which parameters require one, what
    layers have counted of their pruning, and the random states of Python, of numpy, and of torch's generators
    for the CPU and for the model's GPUs.
    """
    parameters = [(parameter, parameter.requires_grad, parameter.grad) for parameter in model.parameters()]
    buffers = [
        (module, name, buffer, None if buffer is None else buffer.detach().clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
    ]
    pruned = [(pruner, vars(pruner) | {"tally": copy.copy(pruner.tally)}) for _, pruner in pruners(model)]
    gpus = {parameter.device for parameter, _, _ in parameters if parameter.device.type == "cuda"}
    gpu_states = {gpu: torch.cuda.get_rng_state(gpu) for gpu in gpus}
    python_state, numpy_state, torch_state = random.getstate(), np.random.get_state(), torch.get_rng_state()
    for parameter, _, _ in parameters:
        # Set aside rather than added to; a step begins without gradients, too.
        parameter.grad = None
    try:
        yield
    finally:
        for parameter, trainable, gradient in parameters:
            parameter.requires_grad_(trainable)
            parameter.grad = gradient
        with torch.no_grad():
            for module, name, buffer, content in buffers:
                if buffer is not None and content is not None:
                    buffer.copy_(content)
                module._buffers[name] = buffer
        for pruner, attributes in pruned:
            vars(pruner).update(attributes)
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        torch.set_rng_state(torch_state)
        for gpu, state in gpu_states.items():
            torch.cuda.set_rng_state(state, gpu)
