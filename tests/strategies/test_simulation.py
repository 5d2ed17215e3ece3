"""Real Flower: both strategies in the Simulation Engine."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np


def test_gossip_with_j_is_fedavg_with_equal_weights(tmp_path: Path) -> None:
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
