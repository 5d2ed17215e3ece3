"""A profile as text."""

import math
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from flower_edge.cli.screen import printable, say

if TYPE_CHECKING:
    from flower_edge.training.profile import Profile, ProfiledOperation

WIDE = 140
"""Columns for the whole table with the names of a deep model."""


def print_profile(console: Console, measured: "Profile") -> None:
    """Print what was measured where, the table of operations and the tree of modules."""
    full = measured.graph.full_cost
    say(
        console,
        f"{measured.device}, torch {measured.torch_version}, threads: {measured.threads}, least "
        f"{measured.clock} (measured), batch "
        f"{' and '.join('×'.join(map(str, shape)) for shape in measured.batch)}",
    )
    say(
        console,
        f"One step: forward {_ms(measured.forward_seconds)}, backward {_ms(measured.backward_seconds)}, "
        f"optimizer {_ms(measured.optimizer_seconds)} ms. The operations below add up to "
        f"{measured.forward_agreement:.1%} and {measured.backward_agreement:.1%} of the first two. Kept for "
        f"the backward pass: {_size(full.saved_bytes)}; gradients and optimizer state: "
        f"{_size(full.state_bytes)}; weights that errors go back through: "
        f"{_size(measured.feedback_bytes) or 'none'} (counted).",
    )
    console.print(_table(measured, wide=console.width >= WIDE))
    console.print(_tree(measured))


def _table(measured: "Profile", *, wide: bool) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True, caption_justify="left")
    table.add_column("operation", overflow="fold")
    headings = ["forward\nms", "grad input\nms", "shared\nms", "grad weight\nms", "backward\nshare"]
    if wide:
        headings += ["reads", "kept for\ninput", "kept for\nweights", "kept for\nboth", "feedback", "MMAC"]
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    total = math.fsum(operation.backward_seconds for operation in measured.operations) or 1.0
    for index, operation in enumerate(measured.operations):
        row = [
            f"{index} {operation.name}",
            _ms(operation.forward_seconds),
            _ms(operation.grad_input_seconds),
            _ms(operation.shared_seconds),
            _ms(math.fsum(use.grad_weight_seconds for use in operation.tensors)),
            f"{operation.backward_seconds / total:.1%}",
            " ".join(map(str, operation.inputs)),
            *map(_size, (*_kept(measured, operation), operation.feedback_bytes)),
            f"{operation.macs / 1e6:.1f}" if operation.macs else "",
        ]
        table.add_row(*(Text(printable(cell)) for cell in row[: len(headings) + 1]))
    caption = "shared: what both kinds of gradient need."
    if wide:
        caption += (
            " reads: the operations that it sends gradients to.\n"
            "kept: activations for the backward pass; several operations may keep the same one. "
            "feedback: weights that errors go back through."
        )
    else:
        caption += f" A terminal of {WIDE} columns shows bytes and the graph, too."
    table.caption = Text(caption)
    return table


def _kept(measured: "Profile", operation: "ProfiledOperation") -> tuple[int, int, int]:
    for_input = set(operation.saved)
    for_weights = {storage for use in operation.tensors for storage in use.saved}
    return (
        sum(measured.saved_sizes[storage] for storage in for_input - for_weights),
        sum(measured.saved_sizes[storage] for storage in for_weights - for_input),
        sum(measured.saved_sizes[storage] for storage in for_input & for_weights),
    )


def _tree(measured: "Profile") -> Tree:
    """Sum the backward times by module."""
    seconds: dict[str, float] = {}
    for operation in measured.operations:
        parts = operation.module.split(".") if operation.module else []
        for depth in range(len(parts) + 1):
            path = ".".join(parts[:depth])
            seconds[path] = seconds.get(path, 0.0) + operation.backward_seconds
    total = seconds.get("", 0.0) or 1.0
    branches = {"": Tree(Text(f"backward {_ms(seconds.get('', 0.0))} ms"))}
    for path in sorted(seconds, key=list(seconds).index):
        if path:
            parent, _, leaf = path.rpartition(".")
            label = f"{printable(leaf)}  {_ms(seconds[path])} ms  {seconds[path] / total:.1%}"
            branches[path] = branches[parent].add(Text(label))
    return branches[""]


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.3f}"


def _size(count: int) -> str:
    if count < 1e3:
        return f"{count} B" if count else ""
    return f"{count / 1e6:.2f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB"
