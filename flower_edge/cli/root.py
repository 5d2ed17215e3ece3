"""The root of the command, and how its errors look."""

import sys
from collections.abc import Sequence
from typing import Annotated, Any

import click
import typer
from typer.core import TyperGroup

import flower_edge
from flower_edge.cli.certs import certs
from flower_edge.cli.doctor import doctor
from flower_edge.cli.meter import energy
from flower_edge.cli.node import node
from flower_edge.cli.profile import profile
from flower_edge.cli.screen import complain
from flower_edge.cli.topology import topology

BAD_INPUT, INTERRUPTED = 2, 130


class Root(TyperGroup):
    """Group whose errors are one line on stderr: exit status 2 for bad input, 130 after Ctrl-C."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Run the command and exit, as `click.Command.main` does."""
        try:
            # Alone, click would print usage, a box and a traceback; here it returns the status or raises.
            status = super().main(args, prog_name, complete_var, False, windows_expand_args, **extra)
        except click.ClickException as error:
            # A command without arguments has shown its help, and has nothing more to say.
            if message := error.format_message():
                complain(message)
            status = BAD_INPUT
        except (ValueError, ImportError, OSError) as error:
            complain(str(error))
            status = BAD_INPUT
        except (click.Abort, KeyboardInterrupt):
            status = INTERRUPTED
        if standalone_mode:
            sys.exit(status)
        return status


app = typer.Typer(
    cls=Root,
    name="flower-edge",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
app.add_typer(topology, name="topology")
app.add_typer(certs, name="certs")
app.command()(profile)
app.command()(energy)
app.command()(doctor)
app.command()(node)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"flower-edge {flower_edge.__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Gossip learning without a server, for [link=https://flower.ai]Flower[/link]."""
