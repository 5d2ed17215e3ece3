"""Methods are put on a model and taken off again, in place."""

from typing import TypeVar

from torch import nn
from torch.nn.parameter import is_lazy

from flower_edge.training.rule import Method, ModelMethod, Rule
from flower_edge.training.where import NamedLayers, chosen

_Model = TypeVar("_Model", bound=nn.Module)


def prepare_(model: _Model, *methods: Method | ModelMethod) -> _Model:
    """Make a model train by these methods, in place.

    Each chosen layer changes its class, for example from `nn.Conv2d` to :class:`EdgeConv2d`, and nothing
    else: parameters, buffers, hooks, optimizers that hold them, and the keys of ``state_dict`` stay. Only
    layers whose class is exactly one that a method serves can be chosen; subclasses, and layers with
    parametrizations, stay as they are. A model may be prepared again with other methods, or for other layers.

    Parameters
    ----------
    model : Module
        Changed in place, all or nothing: after an error it is as before.
    *methods : Method or ModelMethod
        For example :class:`GradientFilter`; at least one. Each part of a layer's rule may be set by one
        alone.

    Returns
    -------
    Module
        `model` itself.

    Raises
    ------
    TypeError
        If `model` is not a module, or a method is not one.
    ValueError
        If there is no method, a method chooses no layer or one that it cannot serve, two of them set the same
        part of a layer, or the model has lazy layers whose shapes are not known yet.
    """
    _check(model, methods)
    rules: dict[nn.Module, Rule] = {}
    classes: dict[nn.Module, type[nn.Module]] = {}
    for given in methods:
        method = given.for_model(model) if isinstance(given, ModelMethod) else given
        carriers = method.layers()
        for name, layer in _chosen(model, method):
            try:
                addition = method.rule(layer)
            except ValueError as error:
                raise ValueError(
                    f"{method} chooses layer {name!r}, but {error}; leave it out with where="
                ) from None
            before = rules.get(layer, getattr(layer, "rule", Rule()))
            rules[layer] = before.and_also(addition, name)
            classes[layer] = carriers.get(type(layer), type(layer))
    for layer, rule in rules.items():
        layer.__class__ = classes[layer]
        setattr(layer, "rule", rule)  # noqa: B010  `nn.Module` declares its attributes to be tensors
    return model


def restore_(model: _Model) -> _Model:
    """Undo :func:`prepare_`: give every layer its own class back.

    Parameters
    ----------
    model : Module
        Changed in place; one that has not been prepared stays as it is.

    Returns
    -------
    Module
        `model` itself.

    Raises
    ------
    TypeError
        If `model` is not a module.
    ValueError
        If a layer has changed its class since, by a parametrization for example; then nothing is changed.
    """
    _check_module(model)
    prepared = [
        (name, layer) for name, layer in model.named_modules() if isinstance(vars(layer).get("rule"), Rule)
    ]
    for name, layer in prepared:
        if "original" not in vars(type(layer)):
            raise ValueError(
                f"layer {name!r} became a {type(layer).__name__} after prepare_, so its own class is not "
                "known; undo that first, for example with torch.nn.utils.parametrize.remove_parametrizations"
            )
    for _, layer in prepared:
        layer.__class__ = vars(type(layer))["original"]
        for attribute in ("rule", "measurement", "saves_operations"):
            vars(layer).pop(attribute, None)
    return model


def _chosen(model: nn.Module, method: Method) -> NamedLayers:
    carriers = method.layers()
    known = {*carriers, *carriers.values()}
    layers = [(name, layer) for name, layer in model.named_modules() if type(layer) in known]
    names = " or ".join(cls.__name__ for cls in carriers)
    if not layers:
        raise ValueError(f"{method} found no layer of class {names}, exactly, in {type(model).__name__}")
    picked = chosen(method.where, layers)
    if not picked:
        raise ValueError(
            f"{method} chooses none of the {len(layers)} layers of class {names} in {type(model).__name__}, "
            "expected at least one; change where="
        )
    return picked


def _check(model: nn.Module, methods: tuple[object, ...]) -> None:
    _check_module(model)
    if not methods:
        raise ValueError("prepare_(model) was called without a method, expected at least one")
    for method in methods:
        if isinstance(method, type) or not (
            isinstance(method, ModelMethod)
            or all(hasattr(method, attribute) for attribute in ("where", "layers", "rule"))
        ):
            hint = "; call it: GradientFilter()" if isinstance(method, type) else ""
            raise TypeError(
                f"received {method!r:.200}, expected a method, for example GradientFilter(){hint}"
            )
    for name, layer in model.named_modules():
        if any(is_lazy(parameter) for parameter in layer.parameters(recurse=False)):
            raise ValueError(
                f"layer {name!r} is a {type(layer).__name__} without a shape yet; run the model once on a "
                "batch, then prepare it"
            )


def _check_module(model: object) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}, expected a torch.nn.Module")
