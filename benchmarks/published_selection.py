"""The selection of ElasticTrainer (Huang, Yang, Gao, MobiSys 2023), as described there, to compare with.

Tensors form one line, from the output inwards. Times are scaled down to `steps` steps. A table keeps, for
each time spent, the most important choice found among the tensors seen so far, with its deepest tensor. The
next tensor extends every entry: its own gradient, and the way to it from the entry's deepest tensor. Keeping
one choice for each time is what makes it inexact, besides the rounding: a less important one that already
reaches further in might have been extended more cheaply.
"""

from collections.abc import Mapping

import numpy as np

from flower_edge.training.backward_graph import BackwardGraph


def published_selection(
    graph: BackwardGraph, importance: Mapping[str, float], seconds: float, steps: int = 1000
) -> tuple[str, ...]:
    """Select tensors within a backward time.

    Where branches run side by side, the line pays for both, which the graph may not. Rounding may carry a
    choice over the budget; the best one whose true time is within it is returned.

    Parameters
    ----------
    graph : BackwardGraph
        A line, or what is taken for one: its operations in their order.
    importance : mapping of str to float
        Of every tensor.
    seconds : float
        Backward time allowed.
    steps : int, default 1000
        What the time allowed is divided into.
    """
    if seconds <= 0:
        return ()
    scale = steps / seconds
    times = np.cumsum([0.0, *(operation.grad_input_seconds for operation in reversed(graph.operations))])
    lines = [
        (times[depth], tensor.name, tensor.grad_weight_seconds)
        for depth, operation in enumerate(reversed(graph.operations))
        for tensor in reversed(operation.tensors)
        if importance[tensor.name] > 0
    ]
    value = np.full(steps + 1, -np.inf)
    value[0] = 0.0
    reached = np.zeros(steps + 1)
    taken = np.zeros((steps + 1, len(lines)), bool)
    for index, (way, name, own) in enumerate(lines):
        spent = np.arange(steps + 1) + np.rint(scale * (own + way - reached)).astype(int)
        extended = value + importance[name]
        # Of the entries that arrive at the same time, the most important one stands last and stays.
        order = np.argsort(extended, kind="stable")
        order = order[(spent[order] <= steps) & np.isfinite(extended[order])]
        source = np.full(steps + 1, -1)
        source[spent[order]] = order
        better = np.flatnonzero(source >= 0)
        better = better[extended[source[better]] > value[better]]
        extended_taken = taken[source[better]]
        extended_taken[:, index] = True
        value[better], reached[better], taken[better] = extended[source[better]], way, extended_taken
    for entry in np.argsort(-value, kind="stable"):
        names = tuple(name for chosen, (_, name, _) in zip(taken[entry], lines, strict=True) if chosen)
        if graph.cost(names).seconds <= seconds:
            return names
    return ()
