"""BatchNorm2d and the ReLU after it become Range-EvoNorm."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, TypeGuard, TypeVar

import torch
from torch import fx, nn
from torch.nn import functional

from flower_edge.training._tracing import in_mode
from flower_edge.training.range_evonorm import RangeEvoNorm
from flower_edge.training.rule import Rule

_Model = TypeVar("_Model", bound=nn.Module)

_ACTIVATIONS = (nn.ReLU, nn.ReLU6)
_FUNCTIONS = (torch.relu, torch.relu_, functional.relu, functional.relu_, functional.relu6)
_METHODS = ("relu", "relu_")
_CONTAINERS = (nn.ModuleList, nn.ModuleDict)


def replace_batchnorm_(
    model: _Model, groups: int = 8, *, eps: float = 1e-5, activate: Literal["all", "followed"] = "all"
) -> _Model:
    """Replace every BatchNorm2d, and the ReLU or ReLU6 right after it, with :class:`RangeEvoNorm`, in place.

    **This makes another model**, unlike :func:`prepare_`: the running statistics leave ``state_dict`` and `v`
    enters it, outputs change, and no call undoes it. All nodes of a fleet have to do it, with the same
    arguments, before they mix. `weight` and `bias` are the same parameters as before, so that optimizers know
    them; `v` is new to an optimizer made earlier. A pre-trained network has to be trained again.

    Where the output of a normalisation goes to a ReLU or ReLU6 and nowhere else, that call of the activation
    goes away, since Range-EvoNorm has its own. What activates later, after the addition of a residual block
    for example, stays. How an activation goes away:

    - A module that is called once becomes :class:`torch.nn.Identity`.
    - If it is a function or method, ``relu(self.bn1(x))``, or a module that is called elsewhere too, as in
      the blocks of torchvision's ResNets, the module whose ``forward`` has the call gets a forward written
      anew by :mod:`torch.fx`, without it. Its class becomes a subclass of its class; parameters, children and
      their names stay. Such a model can be copied, but not pickled whole.

    Followed are calls within one ``forward``, also where the normalisation is the last of an
    :class:`torch.nn.Sequential` that is called there.

    Parameters
    ----------
    model : Module
        Changed in place, all or nothing: after an error it is as before. Replaced are layers whose class is
        exactly BatchNorm2d.
    groups : int, default 8
        Of each layer, or where it does not divide the channels, the largest number below that does.
    eps : float, default 1e-5
        As of :class:`RangeEvoNorm`.
    activate : {"all", "followed"}, default "all"
        Which layers activate: all of them, or those alone whose normalisation was followed by an activation.
        A residual network learned faster with "all".

    Returns
    -------
    Module
        `model` itself.

    Raises
    ------
    TypeError
        If `model` is not a module.
    ValueError
        If `activate` is neither, `groups` below 1, or `eps` not above 0; if the model contains no
        BatchNorm2d or is prepared by :func:`prepare_`; if a normalisation has hooks, or a ``forward`` that
        calls one cannot be traced by :mod:`torch.fx`, or depends on ``self.training`` and calls an activation
        that would go away.
    """
    _check(model)
    if activate not in ("all", "followed"):
        raise ValueError(f"activate is {activate!r}, expected 'all' or 'followed'")
    if groups < 1:
        raise ValueError(f"groups is {groups}, expected at least 1")
    calls = _Calls()
    for name, module in model.named_modules():
        if not isinstance(module, _CONTAINERS) and any(map(_ends_in_norm, _callable_children(module))):
            calls.read(name, module)
    made: dict[nn.Module, nn.Module] = {
        norm: _made_from(norm, groups, eps, activate == "all" or calls.activates(norm))
        for norm in model.modules()
        if _is_norm(norm)
    }
    rewritten = calls.without_activations(model)
    made |= {activation: nn.Identity() for activation in calls.alone}
    for module in list(model.modules()):
        # Not `named_children`, which leaves out the second name of a module that has two.
        for name, child in list(module._modules.items()):
            if child in made:
                setattr(module, name, made[child])
    for module, cls in rewritten.items():
        module.__class__ = cls
    return model


def _check(model: object) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}, expected a torch.nn.Module")
    norms = {name: module for name, module in model.named_modules() if _is_norm(module)}
    if not norms or model in norms.values():
        raise ValueError(
            f"{type(model).__name__} contains no layer of class BatchNorm2d, exactly; expected one at least"
        )
    for name, module in model.named_modules():
        if isinstance(vars(module).get("rule"), Rule):
            raise ValueError(
                f"layer {name!r} is prepared; call replace_batchnorm_ before prepare_, or restore_(model)"
            )
    for name, norm in norms.items():
        if norm._forward_hooks or norm._forward_pre_hooks or norm._backward_hooks or norm._backward_pre_hooks:
            raise ValueError(f"layer {name!r} has hooks, which would be lost; remove them first")


def _is_norm(module: nn.Module) -> TypeGuard[nn.BatchNorm2d]:
    return type(module) is nn.BatchNorm2d


def _made_from(norm: nn.BatchNorm2d, groups: int, eps: float, activation: bool) -> RangeEvoNorm:
    channels = norm.num_features
    largest = max(divisor for divisor in range(1, groups + 1) if channels % divisor == 0)
    like = norm.weight if norm.affine else norm.running_mean
    device, dtype = (None, None) if like is None else (like.device, like.dtype)
    made = RangeEvoNorm(channels, largest, eps, norm.affine, activation, device, dtype)
    if norm.affine:
        made.weight, made.bias = norm.weight, norm.bias
        if made.v is not None:
            made.v.requires_grad_(norm.weight.requires_grad)
    return made.train(norm.training)


def _callable_children(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        if isinstance(child, _CONTAINERS):
            yield from _callable_children(child)
        else:
            yield child


def _last(module: nn.Module) -> nn.Module:
    while type(module) is nn.Sequential and len(module):
        module = module[-1]
    return module


def _ends_in_norm(module: nn.Module) -> bool:
    return _is_norm(_last(module))


class _LayerTracer(fx.Tracer):
    """Reads one forward; what it calls is not looked into."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


def _traced(name: str, module: nn.Module, training: bool) -> fx.Graph:
    try:
        with in_mode(module, training):
            return _LayerTracer().trace(module)
    except Exception as error:
        raise ValueError(
            f"torch.fx cannot trace the forward of {name or 'the model'!r}, a {type(module).__name__} "
            f"({type(error).__name__}: {error}), so it is not known what follows its normalisations; "
            "write RangeEvoNorm into it by hand"
        ) from error


@dataclass
class _Calls:
    """Who calls normalisations, and what becomes of their outputs."""

    # Of each normalisation: whether the output of each call is activated next, and nothing else.
    followed: dict[nn.Module, list[bool]] = field(default_factory=dict)
    # In the forward of each module: the activations right after a normalisation, with that normalisation.
    found: dict[nn.Module, list[tuple[fx.Node, nn.Module]]] = field(default_factory=dict)
    graphs: dict[nn.Module, fx.Graph] = field(default_factory=dict)
    called: Counter[nn.Module] = field(default_factory=Counter)
    alone: list[nn.Module] = field(default_factory=list)

    def read(self, name: str, module: nn.Module) -> None:
        """Trace a forward."""
        graph, in_eval = (_traced(name, module, training) for training in (True, False))
        self.graphs[module] = graph
        for node in graph.nodes:
            if node.op != "call_module":
                continue
            layer = module.get_submodule(str(node.target))
            self.called[layer] += 1
            norm = _last(layer)
            if not _is_norm(norm):
                continue
            users = list(node.users)
            if type(module) is nn.Sequential and all(user.op == "output" for user in users):
                continue  # whoever calls the Sequential sees what comes next
            activated = len(users) == 1 and _is_activation(users[0], module)
            self.followed.setdefault(norm, []).append(activated)
            if activated:
                self.found.setdefault(module, []).append((users[0], norm))
        if module in self.found and str(graph) != str(in_eval):
            raise ValueError(
                f"the forward of {name or 'the model'!r}, a {type(module).__name__}, depends on "
                "self.training, as F.dropout(x, training=self.training) does, so it cannot be written anew "
                "for both modes; use a layer such as nn.Dropout, or write RangeEvoNorm into it by hand"
            )

    def activates(self, norm: nn.Module) -> bool:
        """Tell whether every call of a normalisation is followed by an activation."""
        followed = self.followed.get(norm, [])
        return bool(followed) and all(followed)

    def without_activations(self, model: nn.Module) -> dict[nn.Module, type[nn.Module]]:
        """Give new classes to modules whose forward is written anew, and find what is called `alone`."""
        places = Counter(child for module in model.modules() for child in module._modules.values() if child)
        classes: dict[nn.Module, type[nn.Module]] = {}
        for module, activations in self.found.items():
            rewritten = False
            for node, norm in activations:
                if not self.activates(norm):
                    continue
                layer = module.get_submodule(str(node.target)) if node.op == "call_module" else None
                if layer is not None and places[layer] == self.called[layer] == 1:
                    self.alone.append(layer)
                    continue
                (source,) = node.all_input_nodes
                node.replace_all_uses_with(source)
                self.graphs[module].erase_node(node)
                rewritten = True
            if rewritten:
                forward = vars(type(fx.GraphModule(module, self.graphs[module])))["forward"]
                cls = type(module)
                classes[module] = type(
                    cls.__name__, (cls,), {"forward": forward, "__module__": cls.__module__}
                )
        return classes


def _is_activation(node: fx.Node, module: nn.Module) -> bool:
    if node.op == "call_module":
        return type(module.get_submodule(str(node.target))) in _ACTIVATIONS
    return (node.op == "call_function" and node.target in _FUNCTIONS) or (
        node.op == "call_method" and node.target in _METHODS
    )
