"""What the command writes to the terminal."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.text import Text

PIPE_WIDTH = 160
"""Columns where no terminal says how many it has: a table that goes to a file is not to be folded."""


def printable(text: str) -> str:
    """Return `text` without the control characters that a file could steer a terminal with."""
    return "".join(
        character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text
    )


def output() -> Console:
    """Return the console of stdout."""
    return Console(width=None if sys.stdout.isatty() else PIPE_WIDTH, highlight=False)


def say(console: Console, text: str, style: str = "") -> None:
    """Print a paragraph: plain text, none of it markup."""
    console.print(Text(printable(text), style=style), soft_wrap=not console.is_terminal)


def complain(text: str) -> None:
    """Print an error: one line on stderr, whatever it quotes."""
    print(f"flower-edge: {printable(' '.join(text.split()))}", file=sys.stderr)


@contextmanager
def progress_bar(what: str = "looking for plans") -> Iterator[Callable[[str, int, int], None] | None]:
    """Show on stderr how far long work is; yields the callback for it, None where no terminal is there."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield None
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(what, total=None)

        def advance(step: str, done: int, total: int) -> None:
            progress.update(task, description=f"done: {step}", completed=done, total=total)

        yield advance
