"""Runs of the quickstart in this process, for benchmarks that need many of them.

The app, its run config and its strategies are those of ``flwr run``; only the transport differs.
"""

import os
import sys
import tomllib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from logging import WARNING, getLogger
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

ROOT = Path(__file__).parent.parent
APP = ROOT / "examples" / "quickstart"
CONFIG: dict[str, Any] = tomllib.loads((APP / "pyproject.toml").read_text("utf-8"))["tool"]["flwr"]["app"][
    "config"
]

Outcome = TypeVar("Outcome")


@dataclass(frozen=True)
class Run:
    """How a run went.

    Attributes
    ----------
    accuracy : dict of int to float
        Round → mean accuracy of all nodes' models, in percent.
    megabytes : dict of int to float
        Round → what the busiest node has sent and received up to it, counted.
    consensus_distance : float
        After the last round.
    """

    accuracy: dict[int, float]
    megabytes: dict[int, float]
    consensus_distance: float


def accuracies(overrides: Mapping[str, Any]) -> dict[int, float]:
    """Return the accuracies of `quickstart_run`."""
    return quickstart_run(overrides).accuracy


def quickstart_run(overrides: Mapping[str, Any]) -> Run:
    """Run the quickstart once.

    Parameters
    ----------
    overrides : mapping
        Changes to the quickstart's run config.
    """
    sys.path.insert(0, str(APP))
    import torch
    from flwr.app import ArrayRecord, ConfigRecord, Message
    from quickstart.client_app import app
    from quickstart.server_app import make_strategy
    from quickstart.task import Net

    from tests.local_grid import LocalGrid

    class ForgetfulGrid(LocalGrid):
        def send_and_receive(self, messages: Any, *, timeout: float | None = None) -> list[Message]:
            replies = super().send_and_receive(messages, timeout=timeout)
            self.sent.clear()  # sixty rounds of models are a gigabyte
            return replies

    getLogger("flwr").setLevel(WARNING)
    torch.set_num_threads(1)
    config = CONFIG | dict(overrides)
    torch.manual_seed(config["seed"])
    strategy = make_strategy(config)
    result = strategy.start(
        ForgetfulGrid(app, list(range(1, strategy.plan.n + 1)), config),
        ArrayRecord(Net().state_dict()),
        config["num-server-rounds"],
        train_config=ConfigRecord({"lr": config["learning-rate"]}),
    )
    evaluated, trained = result.evaluate_metrics_clientapp, result.train_metrics_clientapp
    return Run(
        {r: 100 * metrics["accuracy"] for r, metrics in sorted(evaluated.items())},
        {r: 1e-6 * metrics["busiest-node-bytes"] for r, metrics in sorted(trained.items())},
        trained[max(trained)]["consensus-distance"],
    )


def run_all(
    runs: Sequence[Mapping[str, Any]], outcome: Callable[[Mapping[str, Any]], Outcome] = accuracies
) -> list[Outcome]:
    """Return `outcome` of several run configs, as many at a time as there are cores."""
    os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
    with ProcessPoolExecutor(len(os.sched_getaffinity(0)), get_context("spawn")) as pool:
        return list(pool.map(outcome, runs))
