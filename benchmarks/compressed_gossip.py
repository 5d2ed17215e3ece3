"""Gossip in few bytes: accuracy against megabytes on the quickstart's task, and how fast codecs are.

``python -m benchmarks.compressed_gossip [--quick] [--seeds 1] [--plot FILE.png]``

The quickstart (33 nodes, digits, label skew) is trained with models in fp32 and with each compressor, on the
full graph's Metropolis weights, which stay (CHOCO-SGD), and on the optimised plan, whose links change from
round to round (link by link). Nothing else differs between runs with one seed. Accuracies are measured, bytes
counted at the codec. Runs are kept, so that a benchmark that was cut off goes on. Codecs are measured side by
side with a copy of the same vector, on one thread.
"""

import json
import statistics
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import PLOT, Benchmark, interleaved, option, run
from benchmarks.kept_runs import keep, kept_at
from benchmarks.quickstart_runs import APP, CONFIG, Run, quickstart_run, run_all
from flower_edge.gossip import (
    BFloat16,
    Codec,
    Compressor,
    Float32,
    GossipPlan,
    Int4,
    Int8,
    Layout,
    SignNorm,
    TopK,
)
from flower_edge.gossip.codec import ArraySpec

PROTOCOL = 1
"""Part of what names a kept run: raise it when what a run does changes."""

SEEDS = (0, 1, 2)
LAST_EVALUATIONS = 5
COMPRESSIONS = ("none", "int8", "int4", "sign", "top-k")
TIMED: tuple[Compressor, ...] = (Float32(), BFloat16(), Int8(), Int4(), SignNorm(), TopK(0.1))
CHANNEL = 500
SIZES = (270_000, 11_000_000)
"""Numbers of ResNet-20 and of ResNet-18."""


def plans(folder: Path) -> dict[str, tuple[str, GossipPlan]]:
    """Return the plans by name, each with the path of its JSON."""
    sys.path.insert(0, str(APP))
    from quickstart.server_app import make_plan

    found = {}
    for name, strategy in (("full graph", "gossip-full"), ("optimised", "gossip")):
        plan, path = make_plan(CONFIG | {"strategy": strategy}), folder / f"{strategy}.json"
        plan.to_json(path)
        found[name] = (str(path), plan)
    return found


def final(outcome: Run) -> float:
    """Mean accuracy of the last evaluations, in percent."""
    return statistics.fmean(list(outcome.accuracy.values())[-LAST_EVALUATIONS:])


def kept_run(overrides: dict[str, Any]) -> Run:
    """Return a run's outcome, from the disk if it was run before: all of them take a quarter of an hour."""
    plan = GossipPlan.from_json(Path(overrides["plan"]))
    path = kept_at("compressed_gossip", [PROTOCOL, plan.digest(), {**CONFIG, **overrides, "plan": ""}])
    if not path.exists():
        keep(path, asdict(quickstart_run(overrides)))
    kept = json.loads(path.read_text("utf-8"))
    accuracy, megabytes = ({int(r): v for r, v in kept[key].items()} for key in ("accuracy", "megabytes"))
    return Run(accuracy, megabytes, kept["consensus_distance"])


def train(bench: Benchmark) -> list[dict[str, Any]]:
    """Fill the table of accuracies; return what `plot` draws."""
    seeds, rounds = ((0,), 6) if bench.quick else (SEEDS[: bench.options.seeds], CONFIG["num-server-rounds"])
    with tempfile.TemporaryDirectory() as folder:
        found = plans(Path(folder))
        cases = [(name, compression) for name in found for compression in COMPRESSIONS]
        if bench.quick:
            cases = [case for case in cases if case[1] in ("none", "int8", "int4")]
        runs = [
            {
                "strategy": "gossip",
                "plan": found[name][0],
                "compression": compression,
                "num-server-rounds": rounds,
                "seed": seed,
            }
            for name, compression in cases
            for seed in seeds
        ]
        outcomes = iter(run_all(runs, kept_run))
        of_case = {case: [next(outcomes) for _ in seeds] for case in cases}
    curves = []
    for (name, compression), those in of_case.items():
        plain = of_case[name, "none"]
        lost = [final(ours) - final(theirs) for ours, theirs in zip(plain, those, strict=True)]
        megabytes = statistics.fmean(outcome.megabytes[rounds] for outcome in those)
        fewer = statistics.fmean(outcome.megabytes[rounds] for outcome in plain) / megabytes
        bench.row(
            what=f"{name}, {compression}",
            accuracy=statistics.fmean(map(final, those)),
            points_lost=statistics.fmean(lost),
            consensus_distance=statistics.fmean(outcome.consensus_distance for outcome in those),
            busiest_megabytes=megabytes,
            times_fewer_bytes=fewer,
            encode_gb_s="",
            decode_gb_s="",
            encode_share_of_copy="",
        )
        curves.append({"plan": name, "compression": compression, "runs": those})
        if bench.quick or compression not in ("int8", "int4"):
            continue
        text = f"{name}, {compression}"
        bench.at_most(f"points of accuracy lost, {len(seeds)} seeds: {text}", statistics.fmean(lost), 0.5)
        bench.at_least(f"times fewer bytes, counted: {text}", fewer, {"int8": 3.8, "int4": 7.0}[compression])
    return curves


def measure_codecs(bench: Benchmark) -> None:
    """Time encoding and decoding beside a copy; GB of fp32 a second."""
    for size in SIZES:
        layout = Layout((ArraySpec("weight", (size // CHANNEL, CHANNEL), "float32"),))
        for compressor in TIMED:
            measure_codec(bench, compressor.codec(layout))


def measure_codec(bench: Benchmark, codec: Codec) -> None:
    """Add the row of one codec."""
    vector = np.random.default_rng(0).standard_normal(codec.size).astype(np.float32)
    to, message = np.empty_like(vector), codec.encode(vector)
    timings = interleaved(
        {
            "encode": lambda: codec.encode(vector),
            "decode": lambda: codec.decode(message),
            "copy": lambda: np.copyto(to, vector),
        },
        repeats=7,
        seconds=0.005 if bench.quick else 0.02,
    )
    bench.row(
        what=f"{codec.size:,} numbers, {codec.name}",
        accuracy="",
        points_lost="",
        consensus_distance="",
        busiest_megabytes="",
        times_fewer_bytes=vector.nbytes / len(message),
        encode_gb_s=1e-9 * vector.nbytes / timings["encode"].median,
        decode_gb_s=1e-9 * vector.nbytes / timings["decode"].median,
        encode_share_of_copy=timings["copy"].over(timings["encode"]),
    )


def plot(curves: list[dict[str, Any]], path: str) -> None:
    """Draw accuracy over the busiest node's megabytes, a panel for each plan."""
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(curve["plan"] for curve in curves))
    figure = Figure(figsize=(5 * len(names), 4), layout="constrained")
    panels = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    for axes, name in zip(panels, names, strict=True):
        for curve in curves:
            if curve["plan"] != name:
                continue
            runs: list[Run] = curve["runs"]
            rounds = list(runs[0].accuracy)
            axes.plot(
                [statistics.fmean(each.megabytes[r] for each in runs) for r in rounds],
                [statistics.fmean(each.accuracy[r] for each in runs) for r in rounds],
                label="fp32" if curve["compression"] == "none" else curve["compression"],
            )
        axes.set_xscale("log")
        axes.set_xlabel("MB sent and received by the busiest node (counted)")
        axes.set_title(name)
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("accuracy, mean of all nodes (%)")
    panels[0].legend()
    figure.savefig(path, dpi=120)


def main(bench: Benchmark) -> None:
    """Measure the codecs, train, and draw."""
    measure_codecs(bench)
    curves = train(bench)
    if bench.options.plot:
        plot(curves, bench.options.plot)
    if bench.quick:
        lost = [abs(row["points_lost"]) for row in bench.rows if row["points_lost"] != ""]
        bench.at_most("points that compression changes after a short run", max(lost), 3.0)


if __name__ == "__main__":
    some = {"choices": range(1, len(SEEDS) + 1), "default": len(SEEDS), "help": "seeds of each case"}
    run("compressed_gossip", __doc__, main, PLOT, option("--seeds", type=int, **some))
