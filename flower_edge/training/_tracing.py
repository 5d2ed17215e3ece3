"""The calls of a model's layers, as a graph."""

from torch import fx, nn


class _LeafTracer(fx.Tracer):
    """Sees through containers only: prepared layers are layers, too."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return not any(m.children()) or super().is_leaf_module(m, module_qualified_name)


def traced_calls(model: nn.Module) -> list[fx.Node]:
    """Trace a model down to its layers, without running it.

    Parameters
    ----------
    model : Module
        Its forward pass must not branch on its data; else :mod:`torch.fx` raises whatever it raises.

    Returns
    -------
    list of Node
        Every call of a layer, in order.
    """
    return [node for node in _LeafTracer().trace(model).nodes if node.op == "call_module"]
