"""Real Flower: sessions between simulated nodes, which the Simulation Engine has to run all at once."""

import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np
import pytest

from flower_edge.gossip import full_graph_plan, load_graph
from flower_edge.strategies import ServerlessGossip
from flower_edge.strategies.meeting import forget, meet, simulated_root


def run(output: Path, cpus: float) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(Path(__file__).parent / "direct_run.py"), str(output), str(cpus)],
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
        env=os.environ | {"FLWR_TELEMETRY_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "0"},
    )


def test_simulated_nodes_exchange_models_directly(tmp_path: Path) -> None:
    before = set(Path(tempfile.gettempdir()).glob("flower_edge-*"))

    done = run(tmp_path / "outcome.npz", 0.5)

    assert (tmp_path / "outcome.npz").exists(), done.stdout[-4000:] + done.stderr[-4000:]
    with np.load(tmp_path / "outcome.npz") as outcome:
        names = [name.removeprefix("direct/") for name in outcome if name.startswith("direct/")]
        assert len(names) == 4
        for name in names:
            np.testing.assert_allclose(
                outcome[f"direct/{name}"], outcome[f"hosted/{name}"], rtol=1e-5, atol=1e-5
            )
        assert outcome["failed"].tolist() == [0] * 6
    assert set(Path(tempfile.gettempdir()).glob("flower_edge-*")) <= before, "nothing is left behind"


@pytest.mark.slow
def test_fewer_processes_than_nodes_are_refused(tmp_path: Path) -> None:
    done = run(tmp_path / "outcome.npz", 1.0)

    assert not (tmp_path / "outcome.npz").exists()
    assert "simulation='direct' needs all 4 nodes at the same time, and 2 were" in done.stdout + done.stderr


def test_who_gives_up_is_not_taken_for_present() -> None:
    run_ = "a" * 32
    try:
        assert meet(run_, 0, 3, timeout=0.1) == 1
        assert meet(run_, 1, 3, timeout=0.1) == 1
        found: list[int] = []
        threads = [threading.Thread(target=lambda n=n: found.append(meet(run_, n, 3))) for n in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == [3, 3, 3]
        assert simulated_root(run_).stat().st_mode & 0o77 == 0
    finally:
        forget(run_)
    assert not simulated_root(run_).exists()


def test_another_kind_of_simulation() -> None:
    with pytest.raises(ValueError, match="simulation is 'both'; expected 'hosted' or 'direct'"):
        ServerlessGossip(full_graph_plan(load_graph("ring:4")), simulation="both")
