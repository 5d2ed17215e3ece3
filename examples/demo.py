"""FedAvg, gossip as the literature has it, and the optimised plan: ``python -m examples.demo``.

Runs the quickstart five times through ``flwr run`` and ends with a table, ``demo/report.html`` and
``demo/report.png``. Exits with 0 when the comparison was made, whatever it shows, with 1 when a run failed.
"""

import json
import os
import signal
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from examples.comparison import COLUMNS, Comparison, Outcome
from examples.simulation import LocalFlower, SimulationError

ROOT = Path(__file__).parent.parent
APP = ROOT / "examples" / "quickstart"
OUTPUT = ROOT / "demo"
RATES = ROOT / "benchmarks" / "results" / "learning_rate.json"
CONFIG = tomllib.loads((APP / "pyproject.toml").read_text("utf-8"))["tool"]["flwr"]["app"]["config"]

METHODS = {
    "fedavg": "(a) FedAvg",
    "gossip-full": "(b) D-PSGD, full graph",
    "matcha": "(c) D-PSGD, MATCHA(0.5)",
    "random-matchings": "(d) D-PSGD, random matchings",
    "gossip": "(e) D-PSGD, optimised plan",
}
"""Strategies of the quickstart, or modes of plans for it, and what the demo calls them."""


def main() -> int:
    """Make the comparison and show it; return the exit status."""
    # Being told to end takes the same way out as Ctrl-C: through LocalFlower's clean-up.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    console = Console() if sys.stdout.isatty() else Console(width=120)
    try:
        comparison = compare(console)
    except SimulationError as error:
        print(f"The demo failed. {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    show(comparison, console)
    write_report(comparison)
    console.print(f"Report: {OUTPUT / 'report.html'}", soft_wrap=True)
    return 0


def compare(console: Console) -> Comparison:
    """Run all methods; their metrics and the plan stay in the output folder."""
    sys.path.insert(0, str(APP))
    from quickstart.server_app import model_bytes, round_energy

    from flower_edge.gossip import full_graph_plan, load_graph, optimize

    OUTPUT.mkdir(exist_ok=True)
    graph, energy = load_graph(CONFIG["graph"]), round_energy()
    console.print(f"Optimising the plan for {CONFIG['graph']} …")
    plan = optimize(graph, energy, max_slowdown=CONFIG["max-slowdown"])
    plan.to_json(OUTPUT / "gossip-plan.json")
    for mode in ("matcha", "random-matchings"):
        optimize(graph, energy, mode=mode, max_slowdown=1.0).to_json(OUTPUT / f"{mode}-plan.json")
    rate = best_learning_rate()
    metrics = run_all(console, plan.n, CONFIG | {"learning-rate": rate})
    return Comparison(
        graph=graph,
        full_plan=full_graph_plan(graph, energy),
        plan=plan,
        fedavg=Outcome.of_fedavg(METHODS["fedavg"], metrics["fedavg"], graph, energy, model_bytes()),
        baseline=Outcome.of_gossip(METHODS["gossip-full"], metrics["gossip-full"]),
        others=tuple(Outcome.of_gossip(METHODS[m], metrics[m]) for m in ("matcha", "random-matchings")),
        optimised=Outcome.of_gossip(METHODS["gossip"], metrics["gossip"]),
        task=f"{plan.n} nodes on {CONFIG['graph']}, {CONFIG['dataset']} with Dirichlet({CONFIG['alpha']:g}) "
        f"label skew, {CONFIG['num-server-rounds']} rounds, learning rate {rate:g}, the best for (b)",
    )


def run_all(console: Console, nodes: int, config: dict[str, Any]) -> dict[str, Any]:
    """Run the quickstart with each method; return the metrics that it wrote."""
    metrics = {}
    with (
        LocalFlower() as flower,
        Progress(*_columns(), console=console, disable=not console.is_terminal) as bars,
    ):
        for method, name in METHODS.items():
            results = OUTPUT / f"{method}.json"
            plan = OUTPUT / f"{method}-plan.json"
            how = {"strategy": "gossip", "plan": str(plan)} if plan.exists() else {"strategy": method}
            results.unlink(missing_ok=True)
            bar = bars.add_task(name, total=CONFIG["num-server-rounds"])

            def on_round(server_round: int, name: str = name, bar: Any = bar) -> None:
                bars.update(bar, completed=server_round)
                if not console.is_terminal and server_round % 10 == 1:
                    console.print(f"{name}: round {server_round} of {CONFIG['num-server-rounds']}")

            flower.run(APP, nodes, config | how | {"results": str(results)}, on_round)
            metrics[method] = json.loads(results.read_text("utf-8"))
    return metrics


def best_learning_rate() -> float:
    """Return the rate that `benchmarks.learning_rate` found best for (b)."""
    rows = json.loads(RATES.read_text("utf-8"))["rows"]
    return float(next(row["learning_rate"] for row in rows if row["best"]))


def show(comparison: Comparison, console: Console) -> None:
    """Print the table, what it says, and how its figures came about."""
    table = Table(title=comparison.task, title_justify="left", caption_justify="left")
    for column in COLUMNS:
        first = column == COLUMNS[0]
        table.add_column(column, justify="left" if first else "right", no_wrap=first)
    for row in comparison.rows:
        table.add_row(*row)
    console.print(table)
    for note in comparison.notes:
        console.print(f"• {note}", style="dim", markup=False, highlight=False)
    console.print(comparison.verdict, style="bold", markup=False, highlight=False)


def write_report(comparison: Comparison) -> None:
    """Write report.html and report.png."""
    from flower_edge.report import write_html, write_png

    report = comparison.report()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MPLCONFIGDIR"] = folder  # matplotlib's font cache would go to the user's home
        write_png(report, OUTPUT / "report.png")
        write_html(report, OUTPUT / "report.html")


def _columns() -> tuple[Any, ...]:
    return TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()


if __name__ == "__main__":
    sys.exit(main())
