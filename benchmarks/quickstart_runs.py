"""Runs of the quickstart in this process, for benchmarks that need many of them.

The app, its run config and its strategies are those of ``flwr run``; only the transport differs.
"""

import os
import sys
import tomllib
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from logging import WARNING, getLogger
from multiprocessing import get_context
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
APP = ROOT / "examples" / "quickstart"
CONFIG: dict[str, Any] = tomllib.loads((APP / "pyproject.toml").read_text("utf-8"))["tool"]["flwr"]["app"][
    "config"
]


def accuracies(overrides: Mapping[str, Any]) -> dict[int, float]:
    """Run the quickstart once; return the mean accuracy of all nodes' models, in percent, by round.

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
    return {r: 100 * metrics["accuracy"] for r, metrics in sorted(result.evaluate_metrics_clientapp.items())}


def run_all(runs: Sequence[Mapping[str, Any]]) -> list[dict[int, float]]:
    """Return `accuracies` of several run configs, as many at a time as there are cores."""
    os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
    with ProcessPoolExecutor(len(os.sched_getaffinity(0)), get_context("spawn")) as pool:
        return list(pool.map(accuracies, runs))
