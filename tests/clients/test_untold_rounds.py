"""What sessions did, on a board's disk until the server has heard of it."""

import logging
import math
from pathlib import Path

import pytest

from flower_edge.clients.untold_rounds import UntoldRounds


def row(round_: int, **metrics: float) -> dict[str, float]:
    return {"round": round_, "bytes-sent": 10 * round_, "train_loss": 0.5, **metrics}


def test_rounds_are_kept_until_they_are_told(tmp_path: Path) -> None:
    path = tmp_path / "rounds"

    assert UntoldRounds(path).with_those([row(1), row(2)], told=0) == [row(1), row(2)]
    assert UntoldRounds(path).with_those([row(4)], told=0) == [row(1), row(2), row(4)]
    assert UntoldRounds(path).with_those([], told=2) == [row(4)], "a session that had nothing left to do"
    assert UntoldRounds(path).with_those([row(5)], told=4) == [row(5)]
    assert list(tmp_path.iterdir()) == [path]


def test_numbers_read_back_as_they_were(tmp_path: Path) -> None:
    rounds = UntoldRounds(tmp_path / "rounds")
    rounds.with_those([row(1, whole=3, part=1 / 3, nan=math.nan, inf=-math.inf)], told=0)

    (found,) = rounds.with_those([], told=0)

    assert (found["whole"], found["part"], found["inf"]) == (3, 1 / 3, -math.inf)
    assert math.isnan(found["nan"])
    assert [type(found[name]) for name in ("round", "whole", "part")] == [int, int, float]


@pytest.mark.parametrize("content", [b"", b"[", b"{}", b"[1]", b'[{"a": 1}]', b'[{"round": "1"}]', b"\xff"])
def test_a_damaged_file_costs_what_it_held_and_no_more(
    content: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "rounds"
    path.write_bytes(content)
    logging.getLogger("flwr").addHandler(caplog.handler)
    try:
        assert UntoldRounds(path).with_those([row(7)], told=0) == [row(7)]
    finally:
        logging.getLogger("flwr").removeHandler(caplog.handler)

    assert (content == b"{}") or "cannot be read" in caplog.text
    assert UntoldRounds(path).with_those([], told=0) == [row(7)]


def test_a_full_disk_stops_no_report(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("flwr").addHandler(caplog.handler)
    try:
        assert UntoldRounds(tmp_path / "gone" / "rounds").with_those([row(1)], told=0) == [row(1)]
    finally:
        logging.getLogger("flwr").removeHandler(caplog.handler)

    assert "not on disk" in caplog.text
