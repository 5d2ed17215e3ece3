"""The calls of a model's layers, as a graph."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import fx, nn


class _LeafTracer(fx.Tracer):
    """Sees through containers only: prepared layers are layers, too."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return not any(m.children()) or super().is_leaf_module(m, module_qualified_name)


@contextmanager
def in_mode(model: nn.Module, training: bool) -> Iterator[None]:
    """Have a model in one mode, and put back every module's own."""
    before = {module: module.training for module in model.modules()}
    try:
        for module in before:
            module.training = training
        yield
    finally:
        for module, mode in before.items():
            module.training = mode


def traced_calls(model: nn.Module) -> tuple[list[fx.Node], list[fx.Node]]:
    """Trace a model down to its layers, without running it, in train and in eval mode.

    Parameters
    ----------
    model : Module
        Its forward pass may branch on its mode, but not on its data; else :mod:`torch.fx` raises whatever it
        raises.

    Returns
    -------
    tuple of list of Node
        Every call of a layer, in order, in either mode.
    """
    graphs = []
    for training in (True, False):
        with in_mode(model, training):
            graphs.append(_LeafTracer().trace(model))
    trained, evaluated = ([node for node in graph.nodes if node.op == "call_module"] for graph in graphs)
    return trained, evaluated
