"""``flower-edge topology``: make mixing plans, compare them, look at them."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO, cast, get_args

import click
import numpy as np
import typer
from typer import Option

from flower_edge._extras import require
from flower_edge._files import check_target, write_whole
from flower_edge.cli import tables
from flower_edge.cli.energy import EnergyOptions
from flower_edge.cli.groups import with_option_groups
from flower_edge.cli.screen import output, progress_bar, say
from flower_edge.gossip.bilevel import Mode
from flower_edge.gossip.bilevel import optimize as optimized
from flower_edge.gossip.choice import Choice, Objective
from flower_edge.gossip.graph import load_graph
from flower_edge.gossip.plan import GossipPlan
from flower_edge.report.topology import write_frontier, write_map

if TYPE_CHECKING:
    import networkx as nx

topology = typer.Typer(
    name="topology",
    no_args_is_help=True,
    help="Who mixes with whom: make mixing plans, compare them, look at them.",
)

SEARCH_PANEL = "What is looked for"
OUTPUT_PANEL = "Files"

# What it is stands in the commands' own texts: some releases of click and typer together drop it here.
Graph = Annotated[str, typer.Argument(metavar="GRAPH", show_default=False)]
Force = Annotated[bool, Option("--force", help="Replace files that exist.", rich_help_panel=OUTPUT_PANEL)]


@dataclass(frozen=True)
class SearchOptions:
    """What plan is looked for: the arguments of `flower_edge.gossip.optimize`."""

    objective: Annotated[
        str,
        Option(
            click_type=click.Choice(get_args(Objective)),
            help="What to save: energy of the busiest node, energy of all, or the first battery to die.",
            rich_help_panel=SEARCH_PANEL,
        ),
    ] = "busiest"
    mode: Annotated[
        str,
        Option(
            click_type=click.Choice(get_args(Mode)),
            help="The kind of plan; auto weighs them all.",
            rich_help_panel=SEARCH_PANEL,
        ),
    ] = "auto"
    nonnegative: Annotated[
        bool, Option("--nonnegative", help="Only weights of zero or more.", rich_help_panel=SEARCH_PANEL)
    ] = False
    min_connectivity: Annotated[
        int,
        Option(
            help="Keep the fleet connected after any K − 1 failures.",
            metavar="K",
            rich_help_panel=SEARCH_PANEL,
        ),
    ] = 1
    max_slowdown: Annotated[
        float,
        Option(
            help="Most rounds to converge, as a multiple of the full graph's. The closer to 1, the closer to "
            "its accuracy at the same learning rate; more saves more.",
            rich_help_panel=SEARCH_PANEL,
        ),
    ] = 3.0
    seed: Annotated[int, Option(help="Of everything random.", rich_help_panel=SEARCH_PANEL)] = 0


@topology.command()
@with_option_groups
def optimize(
    graph: Graph,
    energy: EnergyOptions,
    search: SearchOptions,
    out: Annotated[
        Path | None, Option("--out", "-o", help="Write the plan as JSON.", rich_help_panel=OUTPUT_PANEL)
    ] = None,
    plot: Annotated[
        Path | None,
        Option(
            help="Draw the plan on the graph: a PNG. Needs the extra report.", rich_help_panel=OUTPUT_PANEL
        ),
    ] = None,
    frontier: Annotated[
        Path | None,
        Option(help="Draw energy against rounds of all candidates: a PNG.", rich_help_panel=OUTPUT_PANEL),
    ] = None,
    force: Force = False,
) -> None:
    """Make the plan with which training costs least energy, and set it beside the baselines.

    GRAPH says who can reach whom: a JSON edge list, or complete:NODES, ring:NODES, torus:ROWSxCOLS,
    regular:NODES:DEGREE or geometric:NODES:LINKS, the last two also with :seed=SEED. Nothing is
    written without --out, --plot or --frontier.

    [bold]Examples[/bold]

      flower-edge topology optimize mesh.json --out plan.json --plot plan.png

      flower-edge topology optimize geometric:33:187 --send 1e-3 --receive 8e-4 --compute 2e-3
    """
    _check_targets(force, json=(out,), png=(plot, frontier))
    base, plan, choice = _solve(graph, energy, search)
    console = output()
    tables.print_verdict(console, choice)
    _say_energy(console, plan)
    console.print(
        tables.candidates_table(choice, [("the plan", (choice.chosen,)), ("baselines", choice.baselines)])
    )
    console.print(tables.busiest_nodes_table(plan))
    positions = _positions(base)
    if out is not None:
        _save(console, out, (plan.to_json() + "\n").encode(), force)
    if plot is not None:
        _save(console, plot, _png(lambda file: write_map(plan, file, positions=positions)), force)
    if frontier is not None:
        _save(console, frontier, _png(lambda file: write_frontier(choice, file)), force)
    if out is None:
        say(console, "The plan was not written: add --out plan.json to keep it.", "dim")


@topology.command()
@with_option_groups
def compare(
    graph: Graph,
    energy: EnergyOptions,
    search: SearchOptions,
    plot: Annotated[
        Path | None,
        Option(
            help="Draw energy against rounds: a PNG. Needs the extra report.", rich_help_panel=OUTPUT_PANEL
        ),
    ] = None,
    as_json: Annotated[
        bool, Option("--json", help="Print JSON instead of a table.", rich_help_panel=OUTPUT_PANEL)
    ] = False,
    force: Force = False,
) -> None:
    """Set the ways to mix on a graph side by side.

    GRAPH is what [bold]optimize[/bold] takes. The table has the baselines of the literature, and the
    frontier: what no other way beats in both energy a round and rounds. The star is what
    [bold]optimize[/bold] chooses.

    [bold]Example[/bold]

      flower-edge topology compare mesh.json --broadcast --plot frontier.png
    """
    _check_targets(force, png=(plot,))
    base, plan, choice = _solve(graph, energy, search)
    console = output()
    if as_json:
        document = {
            "graph": graph,
            "nodes": len(base),
            "links": base.number_of_edges(),
            **_comparison(choice),
        }
        typer.echo(json.dumps(document, ensure_ascii=False, allow_nan=False, indent=2))
    else:
        tables.print_verdict(console, choice)
        _say_energy(console, plan)
        groups = [("baselines", choice.baselines), ("frontier", choice.frontier)]
        if choice.chosen not in (*choice.baselines, *choice.frontier):
            groups.insert(0, ("the plan", (choice.chosen,)))
        console.print(tables.candidates_table(choice, groups))
    if plot is not None:
        write_whole(plot, _png(lambda file: write_frontier(choice, file)), force=force)
        typer.echo(f"wrote {plot}", err=as_json)


@topology.command()
def show(
    plan: Annotated[Path, typer.Argument(metavar="PLAN", show_default=False)],
    round: Annotated[int | None, Option(help="Show what is exchanged in this round.", min=0)] = None,
    node: Annotated[
        int | None, Option(help="Show whom this node mixes with: over the cycle, or in --round.", min=0)
    ] = None,
    graph: Annotated[
        str | None,
        Option(metavar="GRAPH", help="Check the plan against this base graph, and draw it there."),
    ] = None,
    plot: Annotated[Path | None, Option(help="Draw the plan: a PNG. Needs the extra report.")] = None,
    force: Annotated[bool, Option("--force", help="Replace a file that exists.")] = False,
) -> None:
    """Say what a plan is, after checking that it is one.

    PLAN is what [bold]optimize --out[/bold] wrote.

    [bold]Example[/bold]

      flower-edge topology show plan.json --node 3 --round 17
    """
    _check_targets(force, png=(plot,))
    loaded = GossipPlan.from_json(plan)
    base = None if graph is None else load_graph(graph)
    if base is not None:
        loaded.validate(base)
    if node is not None and node >= loaded.n:
        raise ValueError(f"received node {node}, the plan has nodes 0 to {loaded.n - 1}")
    console = output()
    if node is not None:
        if round is None and len(loaded.phases) > 1:
            tables.print_neighbours(console, loaded, node)
        else:
            tables.print_row(console, loaded, node, round or 0)
    elif round is not None:
        tables.print_round(console, loaded, round)
    else:
        _show_all(console, loaded, base)
    if plot is not None:
        positions = None if base is None else _positions(base)
        _save(console, plot, _png(lambda file: write_map(loaded, file, positions=positions)), force)


def _show_all(console: Any, plan: GossipPlan, base: "nx.Graph | None") -> None:
    say(console, plan.describe(), "bold")
    say(console, f"SHA-256 {plan.digest()}", "dim")
    if base is not None:
        say(console, f"It fits the graph of {len(base)} nodes and {base.number_of_edges()} links.")
    if plan.energy is not None:
        _say_energy(console, plan)
    if plan.choice is not None:
        tables.print_verdict(console, plan.choice)
        groups = [("the plan", (plan.choice.chosen,)), ("baselines", plan.choice.baselines)]
        console.print(tables.candidates_table(plan.choice, groups))
    if plan.energy is not None:
        console.print(tables.busiest_nodes_table(plan))


def _solve(source: str, costs: EnergyOptions, search: SearchOptions) -> tuple["nx.Graph", GossipPlan, Choice]:
    graph = load_graph(source)
    energy = costs.model(graph)
    with progress_bar() as progress:
        plan = optimized(graph, energy, progress=progress, **vars(search))
    return graph, plan, cast(Choice, plan.choice)


def _check_targets(
    force: bool, json: tuple[Path | None, ...] = (), png: tuple[Path | None, ...] = ()
) -> None:
    """Fail before any work starts if a file could not be written, or a picture not be drawn."""
    if any(png):
        require("matplotlib", "report")
    targets = [(path, suffix) for paths, suffix in ((json, ".json"), (png, ".png")) for path in paths if path]
    for path, suffix in targets:
        check_target(path, force=force, suffix=suffix)
    if len({path.resolve() for path, _ in targets}) < len(targets):
        raise ValueError("received one name for several files, expected different ones")


def _say_energy(console: Any, plan: GossipPlan) -> None:
    if plan.energy is not None:
        say(console, f"Modelled energies: {tables.energy_text(plan.energy)}.")


def _save(console: Any, path: Path, content: bytes, force: bool) -> None:
    write_whole(path, content, force=force)
    say(console, f"wrote {path}")


def _png(draw: Callable[[BinaryIO], None]) -> bytes:
    file = BytesIO()
    draw(file)
    return file.getvalue()


def _positions(graph: "nx.Graph") -> Any:
    points = dict(graph.nodes(data="pos"))
    if any(point is None for point in points.values()):
        return None
    return np.array([points[node] for node in range(len(graph))], np.float64)


def _comparison(choice: Choice) -> dict[str, Any]:
    return {
        "objective": choice.objective,
        "mode": choice.mode,
        "verdict": choice.verdict,
        "energy_unit": tables.energy_unit(choice),
        "energy_is": "modelled",
        "relative_to": choice.baselines[0].name,
        "chosen": tables.candidate_record(choice.chosen, choice),
        "baselines": [tables.candidate_record(candidate, choice) for candidate in choice.baselines],
        "frontier": [tables.candidate_record(candidate, choice) for candidate in choice.frontier],
        "gap": choice.gap,
    }
