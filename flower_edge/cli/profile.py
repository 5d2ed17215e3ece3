"""``flower-edge profile``: what each operation of a model costs in a training step on this device."""

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import click
from typer import Argument, Option

from flower_edge._files import check_target, write_whole
from flower_edge.cli.callables import named_callable
from flower_edge.cli.profile_energy import measure_step, print_energy
from flower_edge.cli.profile_tables import print_profile
from flower_edge.cli.screen import output, progress_bar, say

if TYPE_CHECKING:
    from torch import Tensor, nn

# Torch is imported where it is used: the other commands start without it.

OPTIMIZERS = ("sgd", "momentum", "adam")

MOST_SIZES = 8
MOST_ELEMENTS = 2**30


def profile(
    model: Annotated[str, Argument(metavar="MODULE:CALLABLE", show_default=False)],
    shape: Annotated[
        str, Option("--input", metavar="N,…", help="Shape of a batch of inputs, for example 16,3,32,32.")
    ],
    tokens: Annotated[
        int | None,
        Option(metavar="COUNT", help="The inputs are integers below COUNT; else they are normal numbers."),
    ] = None,
    optimizer: Annotated[
        str, Option(click_type=click.Choice(OPTIMIZERS), help="Whose state and step are counted.")
    ] = "momentum",
    threads: Annotated[
        int, Option(help="Of torch. With one, CPU time counts, which other processes hardly disturb.")
    ] = 1,
    repeats: Annotated[int, Option(help="The least time of so many steps counts.")] = 7,
    seed: Annotated[int, Option(help="Of the inputs.")] = 0,
    out: Annotated[Path | None, Option("--out", "-o", help="Write the profile as JSON.")] = None,
    force: Annotated[bool, Option("--force", help="Replace a file that exists.")] = False,
) -> None:
    """Measure what each operation of a model costs in a training step on this device.

    MODULE is looked for in the current folder, too; CALLABLE returns the model. The loss is the cross-entropy
    to random classes if the output is a table of numbers, else the mean of its squares.

    [bold]Example[/bold]

      flower-edge profile mymodels:resnet18 --input 16,3,32,32 --out profile.json
    """
    import torch

    from flower_edge.training.profile import profile as profiled

    if out is not None:
        check_target(out, force=force, suffix=".json")
    if threads < 1:
        raise ValueError(f"--threads is {threads}, expected at least 1")
    sizes = _sizes(shape)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(seed)
            made = _model(model)
            _check_runs(made, model, sizes, tokens)
            trained = [parameter for parameter in made.parameters() if parameter.requires_grad]
            stepper = _optimizer(optimizer, trained) if trained else None
            batch = _inputs(sizes, tokens)
            with progress_bar("first step") as progress:
                measured = profiled(
                    made, (batch, None), _loss, optimizer=stepper, repeats=repeats, progress=progress
                )
            energy = measure_step(lambda: _step(made, batch, stepper))
    finally:
        torch.set_num_threads(before)
    console = output()
    print_profile(console, measured)
    print_energy(console, measured, energy)
    if out is not None:
        write_whole(out, (measured.to_json() + "\n").encode(), force=force)
        say(console, f"Written to {out}.", "dim")


def _sizes(shape: str) -> tuple[int, ...]:
    parts = shape.split(",")
    if not all(part.strip().isascii() and part.strip().isdigit() for part in parts):
        raise ValueError(f"--input is {shape!r}, expected sizes with commas between them, such as 16,3,32,32")
    sizes = tuple(int(part) for part in parts)
    if len(sizes) > MOST_SIZES or not 0 < math.prod(sizes) <= MOST_ELEMENTS:
        raise ValueError(
            f"--input is {shape!r}, expected at most {MOST_SIZES} sizes of at least 1 and "
            f"{MOST_ELEMENTS} elements"
        )
    return sizes


def _check_runs(made: "nn.Module", reference: str, sizes: tuple[int, ...], tokens: int | None) -> None:
    """Raise a ValueError if the model cannot take such a batch: torch's own errors are of many kinds."""
    import torch

    from flower_edge.training._untouched import untouched

    try:
        with untouched(made), torch.no_grad():
            made(_inputs(sizes, tokens))
    except (RuntimeError, IndexError, TypeError) as error:
        raise ValueError(
            f"{reference} cannot run on a batch of shape {','.join(map(str, sizes))}: {error}"
        ) from error


def _optimizer(kind: str, parameters: "list[nn.Parameter]") -> Any:
    import torch

    if kind == "adam":
        return torch.optim.Adam(parameters, lr=0.0)
    return torch.optim.SGD(parameters, lr=0.0, momentum=0.9 if kind == "momentum" else 0.0)


def _step(made: "nn.Module", batch: "Tensor", optimizer: Any) -> None:
    optimizer.zero_grad()
    _loss(made(batch), None).backward()  # type: ignore[no-untyped-call]
    optimizer.step()


def _inputs(sizes: tuple[int, ...], tokens: int | None) -> "Tensor":
    import torch

    if tokens is None:
        return torch.randn(sizes)
    if tokens < 1:
        raise ValueError(f"--tokens is {tokens}, expected at least 1")
    return torch.randint(tokens, sizes)


def _loss(result: Any, _: None) -> "Tensor":
    import torch

    if not isinstance(result, torch.Tensor):
        raise ValueError(f"the model returns a {type(result).__name__}, expected a tensor")
    if result.ndim != 2:
        return result.square().mean()
    return torch.nn.functional.cross_entropy(result, torch.randint(result.shape[1], result.shape[:1]))


def _model(reference: str) -> "nn.Module":
    from torch import nn

    maker = named_callable(reference, os.getcwd(), "mymodels:resnet18", "a model")
    made = maker()
    if not isinstance(made, nn.Module):
        raise ValueError(f"{reference} returned a {type(made).__name__}, expected a torch.nn.Module")
    return made
