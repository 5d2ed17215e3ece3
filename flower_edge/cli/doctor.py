"""``flower-edge doctor``: whether this board can run a node, and what to fix."""

import json
from dataclasses import asdict
from typing import Annotated

import typer
from rich import box
from rich.table import Table
from rich.text import Text
from typer import Option

from flower_edge.cli import checks
from flower_edge.cli.screen import output, printable, say

SIGNS = {"ok": ("✓", "green"), "note": ("·", "yellow"), "fix": ("✗", "bold red")}


def doctor(
    peer: Annotated[
        list[str] | None,
        Option(metavar="HOST:PORT", help="A neighbour that has to be reachable; may be given several times."),
    ] = None,
    superlink: Annotated[
        str | None, Option(metavar="HOST:PORT", help="The SuperLink that has to be reachable.")
    ] = None,
    as_json: Annotated[bool, Option("--json", help="For machines.")] = False,
) -> None:
    """Check this board: Python, torch, kernels, clock, memory, disk, sensors, and who can be reached.

    Exit status 1 if something has to be fixed.

    [bold]Example[/bold]

      flower-edge doctor --superlink 10.0.0.1:9092 --peer 10.0.0.2:9443
    """
    others = [("peer", address) for address in peer or ()]
    if superlink is not None:
        others.append(("SuperLink", superlink))
    for _, address in others:
        checks.parse_address(address)
    made = [
        checks.python(),
        checks.flwr(),
        checks.torch(),
        checks.processor(),
        checks.compiled_kernels(),
        checks.page_size(),
        checks.clock(),
        checks.memory(),
        checks.disk(),
        checks.energy_sensors(),
        *(checks.reachable(kind, address) for kind, address in others),
    ]
    failing = [check for check in made if check.state == "fix"]
    if as_json:
        typer.echo(json.dumps({"ok": not failing, "checks": [asdict(check) for check in made]}, indent=1))
    else:
        _print(made, failing)
    raise typer.Exit(1 if failing else 0)


def _print(made: list[checks.Check], failing: list[checks.Check]) -> None:
    console = output()
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_header=False)
    for _ in range(3):
        table.add_column(overflow="fold")
    for check in made:
        sign, style = SIGNS[check.state]
        found = printable(check.found)
        if check.advice:
            found += f"\n→ {printable(check.advice)}"
        table.add_row(Text(sign, style=style), Text(printable(check.name)), Text(found))
    console.print(table)
    if failing:
        say(console, f"To fix: {', '.join(check.name for check in failing)}.", "bold red")
    else:
        say(console, "Nothing has to be fixed.", "bold green")
