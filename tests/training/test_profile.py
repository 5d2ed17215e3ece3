import json
import math
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from flower_edge.training import _profile_json
from flower_edge.training._operations import Operations
from flower_edge.training._passes import Step
from flower_edge.training._recorder import Recorder
from flower_edge.training.memory import saved_bytes
from flower_edge.training.profile import Profile, ProfiledOperation, profile


class Residual(nn.Module):
    """Two residual blocks: the first with a convolution in its shortcut, in-place modules everywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.main = nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.main_norm = nn.BatchNorm2d(16)
        self.shortcut = nn.Conv2d(8, 16, 1, stride=2)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False)
        self.group_norm = nn.GroupNorm(4, 16)
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.norm(self.stem(x)))
        y = self.main_norm(self.main(x))
        y += self.shortcut(x)
        y = self.relu(y)
        y = y + self.group_norm(self.depthwise(y))
        return self.head(functional.adaptive_avg_pool2d(y, 1).flatten(1))


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + self.out(attended)
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 4, stride=4)
        self.position = nn.Parameter(torch.zeros(1, 17, 16))
        self.token = nn.Parameter(torch.zeros(1, 1, 16))
        self.block = Block(16, 2)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.position
        x = self.block(x)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return self.head(x[:, 0])


class Tied(nn.Module):
    """A language model that reads its embedding again as the head."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 6)
        self.layer = nn.Linear(6, 6)
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(torch.tanh(self.layer(self.embedding(tokens)))).mean(1)


IMAGES = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
TOKENS = torch.arange(12).reshape(4, 3) % 11
CLASSES = torch.tensor([0, 1, 2, 3])


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
    random.seed(0)


def profiled(model: nn.Module, inputs: Tensor = IMAGES, **options: Any) -> Profile:
    return profile(model, (inputs, CLASSES), functional.cross_entropy, **{"repeats": 1, **options})


def by_name(measured: Profile) -> dict[str, ProfiledOperation]:
    return {operation.name: operation for operation in measured.operations}


def reads(measured: Profile, name: str) -> set[str]:
    return {measured.operations[source].name for source in by_name(measured)[name].inputs}


def test_a_residual_net_s_graph() -> None:
    measured = profiled(Residual())

    assert reads(measured, "stem.conv2d") == set()
    assert reads(measured, "main.conv2d") == reads(measured, "shortcut.conv2d") == {"relu.relu"}
    assert reads(measured, "add_") == {"main_norm.batch_norm", "shortcut.conv2d"}
    assert reads(measured, "add") == {"relu.relu#2", "group_norm.group_norm"}
    assert reads(measured, "head.linear") == {"flatten"}
    assert measured.operations[-1].name == "loss.cross_entropy"
    assert {t.name for t in measured.tensors} == {name for name, _ in Residual().named_parameters()}
    assert [use.name for use in by_name(measured)["head.linear"].tensors] in (
        ["head.weight", "head.bias"],
        ["head.bias", "head.weight"],
    )


def test_gradients_of_inputs_are_paid_only_on_the_way_to_a_trained_tensor() -> None:
    graph = profiled(Residual()).graph
    names = [operation.name for operation in graph.operations]

    paid = {names[index] for index in graph.paid({"main.weight"})}

    assert {"main_norm.batch_norm", "add_", "depthwise.conv2d", "head.linear"} <= paid
    assert not {"main.conv2d", "shortcut.conv2d", "norm.batch_norm", "relu.relu"} & paid


def test_times_are_of_every_part() -> None:
    measured = profiled(Residual(), repeats=3)

    for operation in measured.operations:
        assert operation.forward_seconds > 0
        assert operation.grad_input_seconds >= 0
        assert operation.shared_seconds >= 0
        assert all(use.grad_weight_seconds >= 0 for use in operation.tensors)
    # Not of the addition: it hands its gradient on, which may take less than the clock is off by.
    for name in ("main.conv2d", "depthwise.conv2d", "main_norm.batch_norm", "head.linear"):
        assert by_name(measured)[name].backward_seconds > 0, name
    # The images need no gradient.
    assert by_name(measured)["stem.conv2d"].grad_input_seconds == 0
    assert measured.graph.full_cost.seconds == pytest.approx(
        math.fsum(operation.backward_seconds for operation in measured.operations)
    )
    assert measured.graph.fixed_seconds == measured.forward_seconds + measured.optimizer_seconds


def test_work_in_common_is_paid_for_its_own_tensor_or_one_behind() -> None:
    measured = profiled(Residual())
    shared = [
        ProfiledOperation(**{**vars(o), "shared_seconds": 0.5 if o.name == "norm.batch_norm" else 0.0})
        for o in measured.operations
    ]
    graph = Profile(**{**vars_of(measured), "operations": tuple(shared)}).graph

    def pays(name: str) -> bool:
        return "norm.batch_norm (shared)" in {graph.operations[i].name for i in graph.paid({name})}

    assert pays("norm.weight")
    assert pays("stem.weight")
    assert not pays("main.weight")


def vars_of(measured: Profile) -> dict[str, Any]:
    return {name: getattr(measured, name) for name in measured.__dataclass_fields__}


def test_multiply_accumulates() -> None:
    operations = by_name(profiled(Residual()))

    assert operations["stem.conv2d"].macs == 4 * 16 * 16 * 8 * 3 * 9
    assert operations["depthwise.conv2d"].macs == 4 * 8 * 8 * 16 * 9
    assert operations["head.linear"].macs == 4 * 16 * 5
    assert operations["norm.batch_norm"].macs == 0
    attention = by_name(profiled(ViT()))["block.scaled_dot_product_attention"]
    assert attention.macs == 2 * 4 * 2 * 17 * 17 * 8


SUBSETS: list[Callable[[str], bool]] = [
    lambda name: True,
    lambda name: name.startswith("head"),
    lambda name: name.endswith("bias"),
    lambda name: "norm" in name,
    lambda name: "stem" in name or "patches" in name or "embedding" in name,
    lambda name: sum(name.encode()) % 3 == 0,
]


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_step_s_operations_and_bytes(momentum: float) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1), nn.Flatten(), nn.Linear(72, 5))
    model[1].weight.requires_grad_(False)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1, momentum=momentum)
    batch = torch.randn(2, 3, 8, 8), torch.tensor([1, 4])

    measured = profile(model, batch, functional.cross_entropy, optimizer=optimizer, repeats=1)

    first, second, head = 2 * 36 * 4 * 27, 2 * 36 * 2 * 4, 2 * 72 * 5
    # No gradient of the image, and of the second layer's weight alone none is wanted.
    assert measured.macs == 2 * first + 2 * second + 3 * head
    trained = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    saved = saved_bytes(model, batch, functional.cross_entropy).total
    assert measured.traffic_bytes == 2 * saved + (5 + 2 * bool(momentum)) * trained


@pytest.mark.parametrize(
    ("make", "subset"), [(make, subset) for make in (Residual, ViT, Tied) for subset in SUBSETS]
)
def test_saved_bytes_are_what_autograd_saves(
    make: Callable[[], nn.Module], subset: Callable[[str], bool]
) -> None:
    model = make()
    inputs = TOKENS if make is Tied else IMAGES
    chosen = {name for name, _ in model.named_parameters() if subset(name)} or {"layer.weight"}
    graph = profiled(model, inputs).graph

    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in chosen)
    counted = saved_bytes(model, (inputs, CLASSES), functional.cross_entropy).total

    assert graph.cost(chosen).saved_bytes == pytest.approx(counted, rel=0.02)


def test_attention_of_either_kind() -> None:
    model = ViT()

    measured = profiled(model)

    operations = by_name(measured)
    assert {t.name for t in measured.tensors} == {name for name, _ in model.named_parameters()}
    assert {u.name for u in operations["attention.linear"].tensors} == {
        "attention.in_proj_weight",
        "attention.in_proj_bias",
    }
    assert {u.name for u in operations["attention.linear#2"].tensors} == {
        "attention.out_proj.weight",
        "attention.out_proj.bias",
    }
    assert reads(measured, "attention.scaled_dot_product_attention")
    assert reads(measured, "block.scaled_dot_product_attention")


def test_parameters_that_are_reshaped_first_belong_to_what_reads_them() -> None:
    measured = profiled(ViT())

    (token,) = by_name(measured)["cat"].tensors

    assert token.name == "token"
    assert not any(operation.kind == "expand" for operation in measured.operations)


def test_shared_parameters_are_read_twice_and_stored_once() -> None:
    model = Tied()
    measured = profiled(model, TOKENS, optimizer=torch.optim.Adam(model.parameters()))
    graph = measured.graph

    assert [graph.operations[index].name for index in graph.readers["embedding.weight"]] == [
        "embedding.embedding",
        "head.linear",
    ]
    assert [tensor.name for tensor in measured.tensors].count("embedding.weight") == 1
    # Gradient and both moments, and one step count.
    assert graph.cost({"embedding.weight"}).state_bytes == 3 * 11 * 6 * 4 + 4
    assert "layer.linear" in {graph.operations[i].name for i in graph.paid({"embedding.weight"})}


@pytest.mark.parametrize(
    ("make", "per_element", "per_tensor"),
    [
        (lambda p: torch.optim.SGD(p, lr=0.1), 4, 0),
        (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), 8, 0),
        (lambda p: torch.optim.AdamW(p, amsgrad=True), 16, 4),
    ],
)
def test_gradient_and_optimizer_bytes(make: Any, per_element: int, per_tensor: int) -> None:
    model = Residual()
    optimizer = make(model.parameters())

    measured = profiled(model, optimizer=optimizer)

    for tensor in measured.tensors:
        size = math.prod(tensor.shape)
        assert tensor.gradient_bytes + tensor.optimizer_bytes == per_element * size + per_tensor
    assert not optimizer.state
    assert measured.optimizer_seconds > 0


def test_frozen_parts_have_no_backward_pass() -> None:
    model = Residual()
    for part in (model.stem, model.norm, model.main):
        part.requires_grad_(False)

    measured = profiled(model)

    assert not {"stem.weight", "norm.weight", "main.weight"} & {tensor.name for tensor in measured.tensors}
    operations = by_name(measured)
    assert operations["stem.conv2d"].macs > 0
    assert operations["stem.conv2d"].backward_seconds == 0
    assert reads(measured, "main_norm.batch_norm") == set()
    assert operations["shortcut.conv2d"].tensors
    assert operations["shortcut.conv2d"].grad_input_seconds == 0


def test_the_model_is_left_as_it_was() -> None:
    model = Residual().train()
    model.head.bias.requires_grad_(False)
    model.main.weight.grad = torch.full_like(model.main.weight, 3.0)
    fired: list[nn.Module] = []
    model.head.register_forward_hook(lambda module, *_: fired.append(module))
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]
    state = {name: (value, value.clone()) for name, value in model.state_dict(keep_vars=True).items()}
    gradient = model.main.weight.grad
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1, momentum=0.9)
    torch.manual_seed(5)
    random.seed(5)

    profiled(model, optimizer=optimizer)

    after = torch.rand(3), random.random()
    torch.manual_seed(5)
    random.seed(5)
    assert torch.equal(after[0], torch.rand(3))
    assert after[1] == random.random()
    for name, (before, content) in state.items():
        now = model.state_dict(keep_vars=True)[name]
        assert now is before
        assert torch.equal(now, content)
    assert model.main.weight.grad is gradient
    assert (gradient == 3).all()
    assert all(p.grad is None for name, p in model.named_parameters() if name != "main.weight")
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["head.bias"]
    assert all(module.training for module in model.modules())
    assert fired
    assert hooks == [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]


def test_the_model_is_left_as_it_was_after_an_error() -> None:
    model = Residual()
    mean = model.norm.running_mean.clone()

    with pytest.raises(ValueError, match="nan"):
        profile(model, (IMAGES, CLASSES), lambda result, targets: result.sum() * math.nan, repeats=1)

    assert torch.equal(model.norm.running_mean, mean)
    assert all(parameter.grad is None for parameter in model.parameters())


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x.clone())
        return 2 * x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return 2 * gradient


class WithCustom(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(768, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(Doubled.apply(self.first(x.flatten(1))))


def test_custom_autograd_functions_are_operations() -> None:
    measured = profiled(WithCustom())

    assert reads(measured, "DoubledBackward") == {"first.linear"}
    assert reads(measured, "second.linear") == {"DoubledBackward"}
    saved = [measured.saved_sizes[storage] for storage in by_name(measured)["DoubledBackward"].saved]
    assert saved == [4 * 8 * 4]


class Checkpointed(nn.Module):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.stem, self.body = nn.Linear(768, 8), nn.Sequential(nn.Linear(8, 8), nn.ReLU())
        self.head = nn.Linear(8, 5)
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x.flatten(1))
        x = checkpoint(self.body, x, use_reentrant=self.reentrant)
        return self.head(x)


@pytest.mark.parametrize(("reentrant", "named"), [(False, "'body.0'"), (True, "checkpoint")])
def test_checkpointed_modules_are_refused(reentrant: bool, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        profiled(Checkpointed(reentrant))


def test_what_cannot_be_profiled_is_refused() -> None:
    model = Residual()

    with pytest.raises(ValueError, match="none of the model's 14 parameters requires a gradient"):
        profiled(Residual().requires_grad_(False))
    with pytest.raises(ValueError, match="depends on no trainable parameter"):
        profile(model, (IMAGES, CLASSES), lambda result, targets: result.detach().sum(), repeats=1)
    with pytest.raises(ValueError, match=r"shape \(4, 5\)"):
        profile(model, (IMAGES, CLASSES), lambda result, targets: result, repeats=1)
    with pytest.raises(ValueError, match="batch is a Tensor"):
        profile(model, IMAGES, functional.cross_entropy)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="repeats is 0"):
        profiled(model, repeats=0)
    with pytest.raises(ValueError, match=r"does not hold parameter 'stem\.weight'"):
        profiled(model, optimizer=torch.optim.SGD(model.head.parameters(), lr=0.1))
    with pytest.raises(ValueError, match="changes its input in place"):
        profiled(nn.Sequential(nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(768, 5)), IMAGES.clone())
    with pytest.raises(ValueError, match="requires a gradient and is no parameter"):
        profiled(model, IMAGES.clone().requires_grad_())
    model.stem.weight.register_post_accumulate_grad_hook(lambda parameter: None)
    with pytest.raises(ValueError, match=r"'stem\.weight' has a hook"):
        profiled(model)


def test_a_model_that_makes_other_calls_every_time_is_refused() -> None:
    class Growing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.passes = nn.Linear(768, 5), 0

        def forward(self, x: Tensor) -> Tensor:
            self.passes += 1
            x = self.layer(x.flatten(1))
            for _ in range(self.passes):
                x = x + 1
            return x

    with pytest.raises(ValueError, match="calls in one forward pass"):
        profiled(Growing())


def test_progress_is_told() -> None:
    told: list[tuple[str, int, int]] = []

    profiled(WithCustom(), progress=lambda *what: told.append(what), repeats=2)

    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)
    assert told[-1][1] <= told[-1][2]


def recorded(model: nn.Module, inputs: Tensor = IMAGES) -> Operations:
    step = Step(model, (inputs, CLASSES), functional.cross_entropy)
    recorder = Recorder(step.module_names, keep=True)
    with recorder.watching(), recorder.recording():
        step.forward()
    return Operations(recorder, step.parameter_names)


def test_each_tensor_is_trained_in_one_half_of_the_steps() -> None:
    model = Residual()
    operations = recorded(model)

    halves = operations.halves()

    assert operations.sources() == {"stem.weight"} == halves[0] & halves[1]
    assert halves[0] | halves[1] == {name for name, _ in model.named_parameters()}
    assert halves[0] - halves[1]
    assert halves[1] - halves[0]
    for draft in operations.drafts:
        assert any(half.issuperset(draft.tensors) for half in halves), draft.name


def test_a_tensor_that_is_a_source_and_read_again_is_trained_in_both() -> None:
    halves = recorded(Tied(), TOKENS).halves()

    assert all("embedding.weight" in half for half in halves)


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return json.loads(profiled(Residual()).to_json())  # type: ignore[no-any-return]


def test_json_reads_back(document: dict[str, Any]) -> None:
    again = Profile.from_json(json.dumps(document), Residual())

    assert json.loads(again.to_json()) == document
    assert again.graph.full_cost.seconds > 0
    assert again.threads == torch.get_num_threads()
    assert again.torch_version == torch.__version__


def test_a_profile_of_another_model_is_refused(document: dict[str, Any]) -> None:
    text = json.dumps(document)

    with pytest.raises(ValueError, match=r"'stem\.weight' of shape \(8, 3, 3, 3\)"):
        Profile.from_json(text, WithCustom())
    model = Residual()
    model.more = nn.Linear(1, 1)
    with pytest.raises(ValueError, match="14 parameters, received one with 16"):
        Profile.from_json(text, model)


def test_a_profile_of_another_place_is_refused(document: dict[str, Any]) -> None:
    Profile.from_json(json.dumps(document)).check_here()

    for field, value in (("device", "abacus"), ("threads", 10**6), ("torch_version", "0.1")):
        with pytest.raises(ValueError, match=f"{value}.*profile the model again"):
            Profile.from_json(json.dumps({**document, field: value})).check_here()


def test_hostile_json_is_refused(document: dict[str, Any]) -> None:
    def changed(**fields: Any) -> str:
        return json.dumps({**document, **fields})

    operation = document["operations"][0]
    for text, message in (
        ("[1]", "received a JSON list"),
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        (json.dumps(document).replace('"threads": ', '"threads": NaN, "x": ', 1), "NaN is no number"),
        (changed(format="other"), "expected format"),
        (changed(version=3), "expected version"),
        (changed(extra=1), "'extra' is missing or unknown"),
        (changed(forward_seconds=-1), "forward_seconds: received -1"),
        (changed(backward_seconds=0), "backward_seconds: received 0"),
        (changed(forward_seconds=True), "received True"),
        (changed(forward_seconds=10**400), "expected a number"),
        (changed(threads="1"), "received '1'"),
        (changed(device=3), "expected a string"),
        (changed(operations={}), "expected a list"),
        (changed(operations=[{**operation, "inputs": [0]}]), "earlier operation"),
        (changed(operations=[{**operation, "saved": [10**6]}]), "indices into profile.saved_sizes"),
        (changed(operations=[{**operation, "macs": 1.5}]), "expected an integer"),
        (changed(operations=[[]]), "expected an object"),
        (changed(tensors=[]), "expected names of profile.tensors"),
        (changed(parameters=[["a"]]), "expected a list"),
    ):
        with pytest.raises(ValueError, match=message):
            Profile.from_json(text)


def test_long_json_is_refused(monkeypatch: pytest.MonkeyPatch, document: dict[str, Any]) -> None:
    monkeypatch.setattr(_profile_json, "MAX_CHARACTERS", 100)

    with pytest.raises(ValueError, match="expected at most 100"):
        Profile.from_json(json.dumps(document))


def test_the_function_and_its_module_share_a_name() -> None:
    import flower_edge.training

    assert flower_edge.training.profile is profile
    assert flower_edge.training.Profile is Profile
