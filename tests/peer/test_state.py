"""A node's state on disk: whole, its own, or refused."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flower_edge.peer import State, StateError

pytestmark = pytest.mark.board

RUN = bytes(range(16))


def state(round_: int = 7, elements: int = 33) -> State:
    model = np.random.default_rng(round_).standard_normal(elements).astype(np.float32)
    return State(RUN, 2, round_, model, {1: (5, 6), 4: (7,)}, b"extra\n\0")


def load(path: Path, **changes: object) -> State:
    return State.load(path, **{"run": RUN, "node": 2, "elements": 33, **changes})


def assert_same(found: State, expected: State) -> None:
    np.testing.assert_array_equal(found.model, expected.model)
    assert (found.run, found.node, found.round, found.last_counted, found.extra) == (
        *(expected.run, expected.node, expected.round, expected.last_counted, expected.extra),
    )


def test_a_state_reads_back(tmp_path: Path) -> None:
    path = tmp_path / "state"
    state(3).save(path)
    state(7).save(path)

    assert_same(load(path), state(7))
    assert list(tmp_path.iterdir()) == [path]


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damage_is_noticed(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "state"
    state().save(path)
    content = bytearray(path.read_bytes())
    where = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        content[where] ^= data.draw(st.integers(1, 255))
    else:
        content = content[:where]
    path.write_bytes(content)

    with pytest.raises(StateError):
        load(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"run": bytes(16)}, "another session: run"),
        ({"node": 3}, r"another session: node 2 \(expected 3\)"),
        ({"elements": 34}, r"another session: elements 33 \(expected 34\)"),
    ],
)
def test_a_state_of_something_else_is_refused(tmp_path: Path, changes: dict, message: str) -> None:
    state().save(tmp_path / "state")

    with pytest.raises(StateError, match=message):
        load(tmp_path / "state", **changes)


def test_a_state_of_another_release_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state"
    state().save(path)
    path.write_bytes(path.read_bytes().replace(b"session 3", b"session 2"))

    with pytest.raises(
        StateError, match=r"session 2.*, expected .*session 3.* one of another release\. Remove"
    ):
        load(path)


def test_a_claim_of_a_terabyte_takes_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "state"
    state(elements=33).save(path)
    path.write_bytes(path.read_bytes().replace(b'"extra": 7', b'"extra": 9' + b"9" * 11))

    with pytest.raises(StateError, match="not whole"):
        load(path)


def test_nan_is_refused(tmp_path: Path) -> None:
    State(RUN, 2, 1, np.float32([1, np.nan])).save(tmp_path / "state")

    with pytest.raises(StateError, match="NaN or infinity"):
        load(tmp_path / "state", elements=2)


def test_a_full_disk_leaves_the_state_before(tmp_path: Path) -> None:
    path = tmp_path / "state"
    script = """
import resource, signal, sys
import numpy as np
from pathlib import Path
from flower_edge.peer import State
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
path = Path(sys.argv[1])
State(bytes(16), 0, 1, np.ones(100, np.float32)).save(path)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    State(bytes(16), 0, 2, np.ones(1000, np.float32)).save(path)
except OSError as error:
    print(error.errno)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True
    )

    assert int(done.stdout) == 27, "EFBIG"
    assert os.listdir(tmp_path) == ["state"]
    assert State.load(path, bytes(16), 0, 100).round == 1
