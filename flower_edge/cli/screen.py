"""What the command writes to the terminal."""

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import current_thread, main_thread
from types import FrameType

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
def heeding_interrupts() -> Iterator[Callable[[], None]]:
    """Let Ctrl-C end long work wherever it is met; yields what raises it again if somebody has swallowed it.

    An import that is interrupted may report an error of its own, and a callback of C drops what is raised.
    """
    received = False

    def heed(number: int, frame: FrameType | None) -> None:
        nonlocal received
        received = True
        signal.default_int_handler(number, frame)

    def again() -> None:
        if received:
            raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGINT)
    watched = before is signal.default_int_handler and current_thread() is main_thread()
    if watched:
        signal.signal(signal.SIGINT, heed)
    try:
        yield again
    except Exception:
        again()
        raise
    finally:
        if watched:
            signal.signal(signal.SIGINT, before)


@contextmanager
def progress_bar(what: str = "looking for plans") -> Iterator[Callable[[str, int, int], None] | None]:
    """Show on stderr how far long work is; yields the callback for it, None where no terminal is there."""
    console = Console(stderr=True)
    if not console.is_terminal:
        with heeding_interrupts():
            yield None
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with heeding_interrupts() as again, Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(what, total=None)

        def advance(step: str, done: int, total: int) -> None:
            again()
            progress.update(task, description=f"done: {step}", completed=done, total=total)

        yield advance
