"""Tensors that join or leave training together."""

from collections.abc import Iterable, Mapping

from flower_edge.training.profile import Profile

NORMS = frozenset({"batch_norm", "group_norm", "instance_norm", "layer_norm", "rms_norm"})
"""Kinds of operations that belong to the operation before them."""


def layer_units(profile: Profile) -> tuple[tuple[str, ...], ...]:
    """Return the tensors of a model by layer: a convolution or linear layer, with the normalisation after it.

    The tensors that one operation reads are of one layer, weight and bias for example. A normalisation that
    reads the output of another layer directly is of that layer; one that reads anything else, a sum of
    branches for example, is a layer of its own. Layers that share a tensor are one. A normalisation that is
    folded into its convolution (:class:`FrozenNorm`) is computed in several operations, and stays apart.

    Parameters
    ----------
    profile : Profile

    Returns
    -------
    tuple of tuple of str
        Every tensor once, in the order of the forward pass.
    """
    first_of: dict[int, str] = {}
    pairs: list[tuple[str, str]] = []
    for index, operation in enumerate(profile.operations):
        names = [use.name for use in operation.tensors]
        if not names:
            continue
        first_of[index] = names[0]
        pairs += [(names[0], name) for name in names]
        if operation.kind in NORMS and len(operation.inputs) == 1:
            source = operation.inputs[0]
            if source in first_of and profile.operations[source].kind not in NORMS:
                pairs.append((first_of[source], names[0]))
    return _joined(profile.graph.tensor_names, pairs)


def _joined(names: Iterable[str], pairs: Iterable[tuple[str, str]]) -> tuple[tuple[str, ...], ...]:
    """Return the connected components."""
    unit_of: dict[str, list[str]] = {name: [name] for name in names}
    for one, other in pairs:
        kept, absorbed = unit_of[one], unit_of[other]
        if kept is not absorbed:
            kept += absorbed
            unit_of.update(dict.fromkeys(absorbed, kept))
    place = {name: index for index, name in enumerate(unit_of)}
    return _ordered(unit_of, place)


def _ordered(unit_of: Mapping[str, list[str]], place: Mapping[str, int]) -> tuple[tuple[str, ...], ...]:
    units = {id(unit): unit for unit in unit_of.values()}
    return tuple(tuple(sorted(unit, key=place.__getitem__)) for unit in units.values())
