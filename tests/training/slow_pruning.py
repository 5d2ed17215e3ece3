"""Training with pruned gradients in float64 and in loops, written from its definition.

The threshold and the choice by chance are the kernels' own, which have tests of their own: what is done with
them is written anew.
"""

import itertools

import numpy as np
import torch
from torch import Tensor, nn

from flower_edge.kernels import prune, pruning_threshold


def pruned(grad: Tensor, sparsity: float, seed: int) -> np.ndarray:
    """What is left of a gradient, in full precision."""
    if sparsity == 0:
        return grad.double().numpy()
    threshold = pruning_threshold(grad.float(), sparsity)
    stays = prune(grad.float(), threshold, seed).dense().numpy() != 0
    g = grad.double().numpy()
    return np.where(np.abs(g) >= threshold, g, threshold * np.sign(g)) * stays


def feedback(weight: np.ndarray) -> np.ndarray:
    """The mean magnitude of each filter, with the signs of its weights."""
    scale = np.abs(weight).mean(axis=(1, 2, 3), keepdims=True)
    return np.where(weight < 0, -scale, scale)


def gradients(
    g: np.ndarray, x: Tensor, back: np.ndarray, stride, padding, dilation, groups
) -> tuple[Tensor, Tensor]:
    """Gradients of input and weight, a cell of the output at a time; errors go back through `back`."""
    x_values = x.detach().double().numpy()
    grad_x, grad_w = np.zeros_like(x_values), np.zeros(back.shape)
    outs, ins = back.shape[0] // groups, back.shape[1]
    for p, q, i, j in itertools.product(*map(range, (*g.shape[2:], *back.shape[2:]))):
        row = p * stride[0] - padding[0] + i * dilation[0]
        column = q * stride[1] - padding[1] + j * dilation[1]
        if not (0 <= row < x.shape[2] and 0 <= column < x.shape[3]):
            continue
        for group in range(groups):
            k, c = slice(group * outs, (group + 1) * outs), slice(group * ins, (group + 1) * ins)
            grad_x[:, c, row, column] += g[:, k, p, q] @ back[k, :, i, j]
            grad_w[k, :, i, j] += g[:, k, p, q].T @ x_values[:, c, row, column]
    return torch.from_numpy(grad_x), torch.from_numpy(grad_w)


class SlowConv2d(nn.Conv2d):
    """A convolution in float64 that trains by the definition; its seed counts up as a layer's does."""

    def forward(self, input: Tensor) -> Tensor:
        return _Slow.apply(input, self.weight, self.bias, self)


class _Slow(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, layer):
        ctx.save_for_backward(x, weight)
        ctx.layer = layer
        return torch.conv2d(x, weight, bias, layer.stride, layer.padding, layer.dilation, layer.groups)

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        layer = ctx.layer
        sparsity = layer.start + (layer.sparsity - layer.start) * min(layer.passes / layer.steps, 1)
        g = pruned(grad, sparsity, layer.seed + layer.passes)
        layer.passes += 1
        back = weight.numpy()
        grad_x, _ = gradients(
            g,
            x,
            feedback(back) if layer.signs else back,
            layer.stride,
            layer.padding,
            layer.dilation,
            layer.groups,
        )
        _, grad_w = gradients(g, x, back, layer.stride, layer.padding, layer.dilation, layer.groups)
        return grad_x, grad_w, None if layer.bias is None else grad.sum((0, 2, 3)), None


def slow_(model: nn.Module, prepared: nn.Module, signs: bool, start: float, steps: int) -> nn.Module:
    """Let a model in float64 train slowly where its prepared copy prunes, with the same seeds."""
    for name, layer in prepared.named_modules():
        way = getattr(vars(layer).get("rule"), "grad_weight", None)
        if way is not None:
            twin = model.get_submodule(name)
            twin.__class__ = SlowConv2d
            twin.seed, twin.passes = way.pruner.seed, 0
            twin.sparsity, twin.start, twin.steps, twin.signs = way.pruner.sparsity, start, steps, signs
    return model
