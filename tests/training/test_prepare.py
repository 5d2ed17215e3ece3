import copy
import io
import itertools
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.parametrize import remove_parametrizations

from flower_edge.training import (
    EdgeConv2d,
    GradientFilter,
    Rule,
    all_but_stem,
    explain,
    last,
    prepare_,
    restore_,
)


def small_model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Sequential(nn.Conv2d(8, 8, 3, groups=8, padding=1), nn.Conv2d(8, 16, 1)),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, stride=2, padding=1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 5),
    )


def prepared_names(model: nn.Module) -> list[str]:
    return [name for name, layer in model.named_modules() if isinstance(layer, EdgeConv2d)]


def gradients(model: nn.Module, seed: int = 0) -> list[torch.Tensor]:
    model.zero_grad()
    model(torch.randn(4, 3, 9, 11, generator=torch.Generator().manual_seed(seed))).square().sum().backward()
    return [parameter.grad.clone() for parameter in model.parameters()]


@dataclass(frozen=True)
class Int8Forward:
    """A method that sets the one part that gradient filtering leaves alone."""

    where: object = all_but_stem

    def layers(self) -> dict[type[nn.Module], type[nn.Module]]:
        return {nn.Conv2d: EdgeConv2d}

    def rule(self, layer: nn.Module) -> Rule:
        return Rule(forward="int8")


@pytest.mark.parametrize(
    ("where", "names"),
    [
        (last(1), ["5"]),
        (last(2), ["3.1", "5"]),
        (last(99), ["0", "3.0", "3.1", "5"]),
        (all_but_stem, ["3.0", "3.1", "5"]),
        (lambda name, layer: name.startswith("3"), ["3.0", "3.1"]),
        (lambda name, layer: layer.kernel_size == (1, 1), ["3.1"]),
    ],
)
def test_where(where, names) -> None:
    model = small_model()

    assert prepare_(model, GradientFilter(where=where, basis="walsh")) is model

    assert prepared_names(model) == names


def test_nothing_else_changes_and_restore_gives_everything_back() -> None:
    model = small_model()
    model[5].register_forward_hook(lambda module, inputs, output: seen.append(module))
    seen: list[nn.Module] = []
    classes = [type(module) for module in model.modules()]
    attributes = [set(vars(module)) for module in model.modules()]
    parameters = list(model.parameters())
    before = {key: value.clone() for key, value in model.state_dict().items()}
    exact = gradients(model)

    prepare_(model, GradientFilter(where=all_but_stem, fallback="never", basis="walsh"))

    assert all(mine is theirs for mine, theirs in zip(model.parameters(), parameters, strict=True))
    assert list(model.state_dict()) == list(before)
    filtered = gradients(model)
    assert not torch.allclose(filtered[-4], exact[-4])
    model.load_state_dict(before)
    assert seen == [model[5]] * 2

    assert restore_(model) is model

    assert [type(module) for module in model.modules()] == classes
    assert [set(vars(module)) for module in model.modules()] == attributes
    for mine, theirs in zip(gradients(model), exact, strict=True):
        torch.testing.assert_close(mine, theirs)
    assert restore_(model) is model


def test_the_model_itself_may_be_the_layer() -> None:
    layer = prepare_(nn.Conv2d(2, 2, 3), GradientFilter())

    assert type(layer) is EdgeConv2d
    assert explain(layer).layers[0].name == "(the model)"
    assert type(restore_(layer)) is nn.Conv2d


def test_a_layer_that_is_used_twice_is_prepared_once() -> None:
    shared = nn.Conv2d(4, 4, 3, padding=1)
    model = prepare_(nn.Sequential(shared, nn.ReLU(), shared), GradientFilter())

    assert len(explain(model).layers) == 1
    model(torch.randn(1, 4, 8, 8)).sum().backward()


def test_subclasses_and_parametrized_layers_stay_as_they_are() -> None:
    class Mine(nn.Conv2d):
        pass

    model = nn.Sequential(
        Mine(3, 3, 1), nn.ConvTranspose2d(3, 3, 1), weight_norm(nn.Conv2d(3, 3, 1)), nn.Conv2d(3, 3, 1)
    )
    classes = [type(module) for module in model]

    prepare_(model, GradientFilter(where=last(9), basis="walsh"))

    assert [type(module) for module in model] == [*classes[:3], EdgeConv2d]


REFUSED = {
    "no method": (small_model, (), ValueError, "without a method"),
    "not a model": (lambda: [1], (GradientFilter(),), TypeError, "model is a list"),
    "not a method": (small_model, ("filter",), TypeError, "received 'filter', expected a method"),
    "class": (small_model, (GradientFilter,), TypeError, r"call it: GradientFilter\(\)"),
    "empty model": (nn.Sequential, (GradientFilter(),), ValueError, "found no layer of class Conv2d"),
    "no convolution": (lambda: nn.Linear(2, 2), (GradientFilter(),), ValueError, "found no layer"),
    "transposed": (lambda: nn.ConvTranspose2d(2, 2, 3), (GradientFilter(),), ValueError, "found no layer"),
    "nothing chosen": (
        small_model,
        (GradientFilter(where=lambda name, layer: False, basis="walsh"),),
        ValueError,
        "chooses none of the 4 layers",
    ),
    "stem alone": (
        lambda: nn.Conv2d(2, 2, 3),
        (GradientFilter(where=all_but_stem, basis="walsh"),),
        ValueError,
        "chooses none of the 1 layers",
    ),
    "lazy": (
        lambda: nn.Sequential(nn.Conv2d(2, 2, 3), nn.LazyConv2d(2, 3)),
        (GradientFilter(),),
        ValueError,
        "layer '1' is a LazyConv2d without a shape yet",
    ),
    "lazy elsewhere": (
        lambda: nn.Sequential(nn.Conv2d(2, 2, 3), nn.LazyBatchNorm2d()),
        (GradientFilter(),),
        ValueError,
        "layer '1' is a LazyBatchNorm2d",
    ),
    "padding mode": (
        lambda: nn.Sequential(nn.Conv2d(2, 2, 3), nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular")),
        (GradientFilter(),),
        ValueError,
        "'1', but it has padding_mode='circular'",
    ),
    "complex": (
        lambda: nn.Sequential(nn.Conv2d(2, 2, 3), nn.Conv2d(2, 2, 3, dtype=torch.complex64)),
        (GradientFilter(),),
        ValueError,
        "'1', but its weight is torch.complex64",
    ),
    "same part": (
        small_model,
        (
            GradientFilter(where=all_but_stem, basis="walsh"),
            GradientFilter(patch_size=4, where=last(1), basis="walsh"),
        ),
        ValueError,
        r"layer '5': GradientFilter\(patch_size=2.*patch_size=4.*both set its saved",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_before_anything_changes(case) -> None:
    make, methods, error, message = REFUSED[case]
    model = make()

    with pytest.raises(error, match=message):
        prepare_(model, *methods)

    if isinstance(model, nn.Module):
        assert not prepared_names(model)


def test_prepared_twice() -> None:
    model = prepare_(small_model(), GradientFilter(where=last(1), basis="walsh"))

    with pytest.raises(ValueError, match=r"layer '5'.*restore_"):
        prepare_(model, GradientFilter(where=all_but_stem, basis="walsh"))
    assert prepared_names(model) == ["5"]

    prepare_(
        model, GradientFilter(patch_size=4, where=lambda name, layer: name.startswith("3"), basis="walsh")
    )
    assert [layer.rule.grad_weight.patch_size for layer in (*model[3], model[5])] == [4, 4, 2]


@pytest.mark.parametrize("together", [False, True])
def test_methods_that_set_different_parts_compose(together) -> None:
    model, filtering = small_model(), GradientFilter(where=last(1), basis="walsh")

    if together:
        prepare_(model, filtering, Int8Forward())
    else:
        prepare_(prepare_(model, Int8Forward()), filtering)

    assert model[5].rule.forward == "int8"
    assert model[5].rule.grad_weight.patch_size == 2
    assert model[3][0].rule == Rule(forward="int8")
    assert str(model[5].rule).count("GradientFilter") == 1
    assert not prepared_names(restore_(model))


def test_str_of_a_rule() -> None:
    assert str(Rule()) == "exact"
    assert (
        "rule=(saved, grad_input, grad_weight: GradientFilter(patch_size=2, components=1, basis='walsh'))"
        in str(prepare_(nn.Conv2d(2, 2, 3), GradientFilter(basis="walsh")))
    )


def test_restore_wants_a_model() -> None:
    with pytest.raises(TypeError, match="model is a NoneType"):
        restore_(None)


@pytest.mark.parametrize("how", ["deepcopy", "file"])
@pytest.mark.parametrize("where", [last(2), all_but_stem, lambda name, layer: True])
def test_copies_train_alike(how, where) -> None:
    model = prepare_(small_model(), GradientFilter(where=where, fallback="never", basis="walsh"))

    if how == "deepcopy":
        other = copy.deepcopy(model)
    else:
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        other = torch.load(file, weights_only=False)

    assert prepared_names(other) == prepared_names(model)
    assert not set(map(id, model.parameters())) & set(map(id, other.parameters()))
    for mine, theirs in zip(gradients(other), gradients(model), strict=True):
        torch.testing.assert_close(mine, theirs)
    restore_(other)
    assert prepared_names(model)


def test_a_layer_that_changed_its_class_later_is_not_restored() -> None:
    model = prepare_(small_model(), GradientFilter(where=last(2), basis="walsh"))
    weight_norm(model[5])
    gradients(model)

    with pytest.raises(ValueError, match=r"layer '5' became a ParametrizedEdgeConv2d.*remove_param"):
        restore_(model)
    assert prepared_names(model) == ["3.1", "5"]

    remove_parametrizations(model[5], "weight")
    assert not prepared_names(restore_(model))


def test_an_attribute_of_the_users_own_is_no_preparation() -> None:
    model = small_model()
    model[2].rule = "mean"
    restore_(prepare_(model, GradientFilter()))
    assert not prepared_names(model)
    assert model[2].rule == "mean"


def test_weights_move_between_prepared_and_plain_models() -> None:
    plain, prepared = small_model(), prepare_(small_model(), GradientFilter())

    plain.load_state_dict(prepared.state_dict())
    prepared.load_state_dict(plain.state_dict(), strict=True)

    x = torch.randn(2, 3, 8, 8)
    for training, layer in itertools.product((True, False), (plain, prepared)):
        layer.train(training)
    assert torch.equal(plain(x), prepared(x))
