"""The C test runner on this machine's own CPU."""

import subprocess
from pathlib import Path

import pytest
from c_runner import build, run

from flower_edge import kernels


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("mix", tmp_path_factory.mktemp("native"))


def test_the_best_version_is_dispatched_and_all_are_right(runner: Path) -> None:
    done = run(runner)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"mix: {kernels.available_isas()[-1]}" in done.stdout.splitlines()


def test_every_instruction_set_can_be_forced(runner: Path) -> None:
    for isa in kernels.available_isas():
        done = run(runner, isa=isa)
        assert done.returncode == 0, done.stdout + done.stderr
        assert f"mix: {isa}" in done.stdout.splitlines()


def test_an_unknown_instruction_set_is_refused(runner: Path) -> None:
    done = run(runner, isa="sse9")
    assert done.returncode == 2
    assert "unknown instruction set 'sse9': this CPU offers serial" in done.stderr


def test_memory_is_respected(tmp_path: Path) -> None:
    sanitize = ["gcc", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    try:
        program = build("mix", tmp_path, sanitize)
    except subprocess.CalledProcessError:
        pytest.skip("gcc has no sanitizers here (package libasan, libubsan)")
    done = run(program)
    assert done.returncode == 0, done.stdout + done.stderr
