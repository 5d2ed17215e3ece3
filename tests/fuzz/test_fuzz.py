"""A few seconds of what `fuzz.py` does for as long as one likes."""

import importlib.util
import random
import subprocess
import sys
from pathlib import Path

import pytest
from fuzz import TooMuchMemoryError, attack, inputs
from fuzz_targets import TARGETS, Target

CASES = 400


@pytest.mark.parametrize("name", TARGETS)
def test_nothing_escapes_but_what_is_documented(name: str) -> None:
    assert attack(name, cases=CASES) == CASES


@pytest.mark.parametrize("name", TARGETS)
def test_good_inputs_are_read(name: str) -> None:
    """A target whose seeds were refused would test little."""
    target = TARGETS[name]

    assert all(target.read(seed) for seed in target.seeds)
    assert not target.read(b"\0rubbish")


def test_what_escapes_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def reads_badly(data: bytes) -> bool:
        if data[3:4] == b"\xff":
            raise KeyError("a hole")
        return True

    def takes_what_is_claimed(data: bytes) -> bool:
        return not bytes(int.from_bytes(data[:4], "little"))

    for read, error in ((reads_badly, KeyError), (takes_what_is_claimed, TooMuchMemoryError)):
        monkeypatch.setitem(TARGETS, "bad", Target(read, (bytes(8),)))
        with pytest.raises(error) as caught:
            attack("bad", cases=2000)
        assert "target 'bad' read b'" in caught.value.__notes__[0]


def test_changes_are_many_and_the_same_each_time() -> None:
    first, second = (
        [data for data, _ in zip(inputs((b"abcdefgh",), random.Random(1)), range(500), strict=False)]
        for _ in range(2)
    )

    assert first == second
    assert len(set(first)) > 300
    assert first[0] == b"abcdefgh"


@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris is not installed")
def test_with_libfuzzer(tmp_path: Path) -> None:
    script = Path(__file__).with_name("fuzz.py")
    done = subprocess.run(
        [sys.executable, str(script), "--seconds", "1", "--corpus", str(tmp_path), "neighbour"],
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr[-4000:]
    assert "stat::number_of_executed_units" in done.stderr
    assert not list(tmp_path.glob("*/crash-*"))
