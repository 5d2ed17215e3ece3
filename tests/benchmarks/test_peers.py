"""What other projects are compared on: the task, its count, and what is said if something is missing."""

import gzip
import json
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks import harness
from benchmarks.peers import bare, p2pfl
from benchmarks.peers.task import FILES, IMAGES, NODES, PARAMETERS, LeNet, Marks, Training, share
from benchmarks.peers.together import together


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Two nodes' images; those of node n have the label n in all places, and the pixel n in the first."""
    pixels = np.random.default_rng(0).integers(0, 256, (2 * IMAGES, 28, 28), np.uint8)
    labels = np.repeat(np.arange(2, dtype=np.uint8), IMAGES)
    pixels[:, 0, 0] = labels
    headers = {"images": [0x803, 2 * IMAGES, 28, 28], "labels": [0x801, 2 * IMAGES]}
    for name, content in (("images", pixels), ("labels", labels)):
        header = b"".join(number.to_bytes(4, "big") for number in headers[name])
        (tmp_path / FILES[name]).write_bytes(gzip.compress(header + content.tobytes(), 1))
    return tmp_path


def test_the_model_is_the_one_of_the_claim() -> None:
    assert sum(parameter.numel() for parameter in LeNet().parameters()) == PARAMETERS == 44_426


def test_each_node_has_its_own_images(images: Path) -> None:
    for node in range(2):
        pixels, labels = share(images, node)

        assert pixels.shape == (IMAGES, 1, 28, 28)
        assert (pixels.dtype, pixels.max()) == (np.float32, 1.0)
        assert set(labels.tolist()) == {node}
        np.testing.assert_array_equal(pixels[:, 0, 0, 0], np.float32(node / 255))
    with pytest.raises(ValueError, match=r"has 1568016 bytes and begins with 00000803, expected at least"):
        share(images, 2)


def test_training_learns(images: Path) -> None:
    training = Training(images, 1)

    losses = [training.epoch() for _ in range(2)]

    assert losses[1] < 0.1 * np.log(10)


def test_a_round_is_the_mean_without_start_up(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, clock, sent = iter([100.0, 5.0, 7.0, 10.0]), iter([0.0, 50.0, 52.0, 60.0]), iter([900, 10, 20, 50])
    monkeypatch.setattr(time, "process_time", lambda: next(cpu))
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    marks = Marks(lambda: next(sent))
    for _ in range(4):
        marks.take()

    assert marks.a_round() == {"cpu_seconds": 2.5, "seconds": 5.0, "bytes": 20.0}


def test_the_bare_loop_says_what_a_round_took(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bare.main({"data": str(images), "nodes": [0], "rounds": 3, "one_core": False})

    word, _, found = capsys.readouterr().out.partition(" ")
    assert word == "found"
    assert 0 < json.loads(found)["cpu_seconds"] < 10


def test_processes_are_summed_and_those_that_fail_are_shown(images: Path) -> None:
    config = {"data": str(images), "rounds": 3, "one_core": True}

    found = p2pfl.bare(config, [[0], [1]])

    assert found["bytes"] == 0
    assert 0 < found["seconds"] < found["cpu_seconds"] * 100
    with pytest.raises(SystemExit, match="expected at least"):
        p2pfl.bare(config, [[NODES]])


def run(*codes: str, **options: object) -> list:
    return together([[sys.executable, "-c", f"import os, time; {code}"] for code in codes], **options)


def test_all_end_when_one_fails(tmp_path: Path) -> None:
    sleeps = f"open(os.path.join({str(tmp_path)!r}, str(os.getpid())), 'w'); time.sleep(60)"
    began = time.monotonic()

    with pytest.raises(SystemExit, match=r"(?s)too bad.*ended with 3:\ntoo bad"):
        run(sleeps, sleeps, "time.sleep(1); print('too bad'); raise SystemExit(3)")

    assert time.monotonic() - began < 30
    assert not any(Path("/proc", pid.name).exists() for pid in tmp_path.iterdir())


def test_who_is_late_is_named() -> None:
    with pytest.raises(SystemExit, match=r"(?s)sleep\(60\).*is not done after 1 s:\nstill here"):
        run("print('still here', flush=True); time.sleep(60)", timeout=1.0)


def test_what_was_found_is_in_the_order_of_the_commands() -> None:
    last, first = (
        "time.sleep(0.3); print('found 1')",
        "print('of no interest'); print('found', os.environ['A'])",
    )

    assert run(last, first, environment={"A": "7"}) == [1, 7]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name a folder with Fashion-MNIST in IDX files by --data FOLDER or FLOWER_EDGE_FASHION_MNIST"),
        (["--data", "EMPTY"], "there is no train-images-idx3-ubyte.gz in "),
        (["--data", "DATA"], "name a virtual environment with p2pfl by --venv FOLDER or FLOWER_EDGE_P2PFL"),
        (["--data", "DATA", "--venv", "EMPTY"], "there is no virtual environment with p2pfl at "),
        (["--data", "DATA", "--venv", sys.prefix], "there is no virtual environment with p2pfl at "),
    ],
)
def test_what_is_missing_is_named(
    arguments: list[str],
    message: str,
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "empty").mkdir()
    names = {"EMPTY": str(tmp_path / "empty"), "DATA": str(images)}
    monkeypatch.setattr(sys, "argv", ["benchmark", *(names.get(word, word) for word in arguments)])
    for variable in (p2pfl.DATA, p2pfl.VENV):
        monkeypatch.delenv(variable, raising=False)

    with pytest.raises(SystemExit):
        harness.run("peers.p2pfl", p2pfl.__doc__, p2pfl.main, *p2pfl.options())
    assert message in capsys.readouterr().err
