"""The C test runner on this machine's own CPU."""

import subprocess
from pathlib import Path

import pytest
from c_runner import RUNNERS, build, families_of, run

from flower_edge import kernels


@pytest.fixture(scope="module", params=RUNNERS)
def runner(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(request.param, tmp_path_factory.mktemp("native"))


def versions(output: str) -> dict[str, str]:
    return dict(line.split(": ", 1) for line in output.splitlines() if ": " in line)


def test_the_best_version_is_dispatched_and_all_are_right(runner: Path) -> None:
    done = run(runner)
    assert done.returncode == 0, done.stdout + done.stderr
    for family in families_of(runner):
        assert versions(done.stdout)[family] == kernels.explain().versions[family]


def test_every_instruction_set_can_be_forced(runner: Path) -> None:
    for isa in kernels.available_isas():
        done = run(runner, isa=isa)
        assert done.returncode == 0, done.stdout + done.stderr
        with kernels.use_isa(isa):
            for family in families_of(runner):
                assert versions(done.stdout)[family] == kernels.explain().versions[family]


def test_an_unknown_instruction_set_is_refused(runner: Path) -> None:
    done = run(runner, isa="sse9")
    assert done.returncode == 2
    assert "unknown instruction set 'sse9': this CPU offers serial" in done.stderr


@pytest.mark.parametrize("family", RUNNERS)
def test_memory_is_respected(family: str, tmp_path: Path) -> None:
    sanitize = ["gcc", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    try:
        # Optimised code with checks takes minutes to compile.
        program = build(family, tmp_path, sanitize, level="-O0")
    except subprocess.CalledProcessError:
        pytest.skip("gcc has no sanitizers here (package libasan, libubsan)")
    done = run(program)
    assert done.returncode == 0, done.stdout + done.stderr
