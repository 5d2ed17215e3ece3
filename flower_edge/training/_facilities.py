"""Units to choose from, and the facilities that they need: costs paid once, whichever units need them.

A facility is the gradient of an operation's inputs, needed by every tensor strictly behind it, or a shared
activation, needed by some tensors. So the cost of a set of units is the sum of their own costs and of the
costs of the union of their facilities, whatever the graph looks like.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from flower_edge.training._relaxation import Array, Mask
from flower_edge.training.backward_graph import BackwardGraph, Operation, TrainableTensor


@dataclass(frozen=True)
class Facilities:
    """What n units cost under k budgets, in the budgets' own dimensions.

    Attributes
    ----------
    costs : ndarray, shape (n, k)
        Each unit's own.
    facility_costs : ndarray, shape (f, k)
        Of the operations, then of the shared activations.
    needs : ndarray of bool, shape (n, f)
        Facilities without a cost are left out.
    paths : tuple of int
        For every unit the part of `needs` that the way of its gradient is made of, as a bit mask.
    """

    costs: Array
    facility_costs: Array
    needs: Mask
    paths: tuple[int, ...]

    @property
    def alone(self) -> Array:
        """What each unit costs if it is the only one, shape (n, k)."""
        found: Array = self.costs + self.needs @ self.facility_costs
        return found


def lay_out(graph: BackwardGraph, units: Sequence[Sequence[str]], budgets: Sequence[str]) -> Facilities:
    """Write a graph as facilities, under budgets that are named as the fields of `Cost`."""
    operations, shared = graph.operations, graph.shared
    unit_of = {name: index for index, unit in enumerate(units) for name in unit}
    costs = [[0.0] * len(budgets) for _ in units]
    for operation in operations:
        for tensor in operation.tensors:
            if tensor.name in unit_of:
                own_costs = costs[unit_of[tensor.name]]
                for column, budget in enumerate(budgets):
                    own_costs[column] += _tensor_cost(tensor, budget)
    facility_costs = np.array(
        [[_operation_cost(operation, budget) for budget in budgets] for operation in operations]
        + [[float(part.saved_bytes) * (budget == "bytes") for budget in budgets] for part in shared]
    )
    counts: list[int] = np.count_nonzero(facility_costs, axis=1).clip(0, 1).tolist()
    own = [counts[index] << index for index in range(len(operations))]
    kept = dict.fromkeys(graph.tensor_names, 0)
    for index, part in enumerate(shared, len(operations)):
        for reader in part.grad_inputs:
            own[reader] |= counts[index] << index
        for name in part.tensors:
            kept[name] |= counts[index] << index
    in_front = [0] * len(operations)
    for index in reversed(range(len(operations))):
        for consumer in graph.consumers[index]:
            in_front[index] |= own[consumer] | in_front[consumer]
    behind = {name: _union(in_front[reader] for reader in graph.readers[name]) for name in graph.tensor_names}
    paths = tuple(_union(behind[name] for name in unit) for unit in units)
    needs = [path | _union(kept[name] for name in unit) for path, unit in zip(paths, units, strict=True)]
    return Facilities(
        np.array(costs),
        facility_costs,
        bits(needs, len(facility_costs)),
        paths,
    )


def bits(masks: Sequence[int], width: int) -> Mask:
    """Spread bit masks out, shape (len(masks), width)."""
    size = (width + 7) // 8
    packed = np.frombuffer(b"".join(mask.to_bytes(size, "little") for mask in masks), np.uint8)
    spread = np.unpackbits(packed.reshape(len(masks), size), axis=1, count=width, bitorder="little")
    return spread.view(np.bool_)


def _union(masks: Iterable[int]) -> int:
    union = 0
    for mask in masks:
        union |= mask
    return union


def _tensor_cost(tensor: TrainableTensor, budget: str) -> float:
    match budget:
        case "seconds":
            return tensor.grad_weight_seconds
        case "bytes":
            return float(tensor.saved_bytes + tensor.state_bytes)
        case _:
            return tensor.grad_weight_joules


def _operation_cost(operation: Operation, budget: str) -> float:
    match budget:
        case "seconds":
            return operation.grad_input_seconds
        case "bytes":
            return float(operation.saved_bytes)
        case _:
            return operation.grad_input_joules
