"""Real Flower: both strategies in the Simulation Engine."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np


def test_strategies_in_a_simulation(tmp_path: Path) -> None:
    """Gossip with W = J is FedAvg with equal weights; CHOCO-SGD in int8 is nearly gossip on the same ring."""
    script, output = Path(__file__).parent / "simulated_run.py", tmp_path / "outcome.npz"

    done = subprocess.run(
        [sys.executable, str(script), str(output)],
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
        env=os.environ | {"FLWR_TELEMETRY_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "0"},
    )

    assert output.exists(), done.stdout[-4000:] + done.stderr[-4000:]
    with np.load(output) as outcome:
        names = [name.removeprefix("fedavg/") for name in outcome if name.startswith("fedavg/")]
        assert len(names) == 4
        for name in names:
            np.testing.assert_allclose(
                outcome[f"gossip/{name}"], outcome[f"fedavg/{name}"], rtol=1e-6, atol=1e-6
            )
        np.testing.assert_allclose(outcome["gossip-accuracy"], outcome["fedavg-accuracy"], atol=1e-6)
        assert outcome["gossip-accuracy"] > 0.7
        for name in names:
            plain = outcome[f"ring/{name}"]
            np.testing.assert_allclose(outcome[f"choco/{name}"], plain, atol=0.01 * np.abs(plain).max())
        assert outcome["choco-accuracy"] > 0.7
        # 163 numbers are too few for a quarter: headers, scales of rows of six, and biases in fp32.
        assert outcome["choco-bytes"] < 0.7 * outcome["ring-bytes"]
