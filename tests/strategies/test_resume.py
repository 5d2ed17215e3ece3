"""A run killed by SIGKILL goes on from its last whole round and ends where it would have ended."""

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

HERE = Path(__file__).parent


def command(resume: str, output: Path, node_ids: list[int]) -> list[str]:
    ids = ",".join(map(str, node_ids))
    return [sys.executable, str(HERE / "resumable_run.py"), resume, str(output), ids]


def run_until_killed(arguments: list[str], server_round: int) -> None:
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    for line in process.stdout:
        if line == f"training in round {server_round}\n":
            process.send_signal(signal.SIGKILL)
            break
    process.stdout.close()
    assert process.wait() == -signal.SIGKILL


@pytest.mark.parametrize("kill_rounds", [[1], [3, 6]])
def test_killed_runs_end_where_an_undisturbed_run_ends(tmp_path: Path, kill_rounds: list[int]) -> None:
    undisturbed, resumed, checkpoint = (
        tmp_path / "whole.npz",
        tmp_path / "resumed.npz",
        tmp_path / "checkpoint",
    )
    subprocess.run(command("-", undisturbed, [5, 6, 7, 8, 9]), check=True, capture_output=True)

    # Flower draws other node ids for every process.
    for attempt, server_round in enumerate(kill_rounds):
        run_until_killed(
            command(str(checkpoint), resumed, [n + 10 * attempt for n in range(5)]), server_round
        )
        assert not resumed.exists()
    last = subprocess.run(
        command(str(checkpoint), resumed, [99, 98, 97, 96, 95]), check=True, capture_output=True, text=True
    )

    assert f"training in round {kill_rounds[-1]}\n" in last.stdout
    assert f"training in round {kill_rounds[-1] - 1}\n" not in last.stdout
    with np.load(undisturbed) as expected, np.load(resumed) as received:
        assert set(expected) == set(received)
        for name in expected:
            np.testing.assert_array_equal(received[name], expected[name])


def test_a_finished_run_is_not_run_again(tmp_path: Path) -> None:
    first, again, checkpoint = tmp_path / "first.npz", tmp_path / "again.npz", tmp_path / "checkpoint"
    subprocess.run(command(str(checkpoint), first, [1, 2, 3, 4, 5]), check=True, capture_output=True)

    done = subprocess.run(
        command(str(checkpoint), again, [1, 2, 3, 4, 5]), check=True, capture_output=True, text=True
    )

    assert "training" not in done.stdout
    with np.load(first) as expected, np.load(again) as received:
        np.testing.assert_array_equal(received["0.weight"], expected["0.weight"])
