"""The NEON versions on emulated ARM cores: cross-compiled for plain armv8-a, run by qemu."""

import shutil
from pathlib import Path

import pytest
from c_runner import FAMILIES, build, run

COMPILER = "aarch64-linux-gnu-gcc"
EMULATOR = "qemu-aarch64-static"

missing = [tool for tool in (COMPILER, EMULATOR) if shutil.which(tool) is None]
pytestmark = pytest.mark.skipif(
    bool(missing),
    reason=f"{' and '.join(missing)} missing (Debian: gcc-aarch64-linux-gnu, qemu-user-static)",
)

# Pi 3, Pi 4, Pi 5, and everything that the emulator knows; with what the kernels of 8 bits run there.
CORES = {"cortex-a53": "neon", "cortex-a72": "neon", "cortex-a76": "dotprod", "max": "i8mm"}


@pytest.fixture(scope="module", params=FAMILIES)
def runner(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = [COMPILER, "-static", "-march=armv8-a"]
    return build(request.param, tmp_path_factory.mktemp("arm"), compiler)


@pytest.mark.parametrize("core", CORES)
def test_neon_is_dispatched_and_right(runner: Path, core: str) -> None:
    done = run(runner, [EMULATOR, "-cpu", core])
    assert done.returncode == 0, done.stdout + done.stderr
    family = runner.name.removesuffix("_test")
    version = CORES[core] if family == "int8" else "neon"
    assert f"{family}: {version}" in done.stdout.splitlines()


def test_serial_can_be_forced(runner: Path) -> None:
    done = run(runner, [EMULATOR, "-cpu", "cortex-a53"], isa="serial")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{runner.name.removesuffix('_test')}: serial" in done.stdout.splitlines()


def test_an_instruction_set_of_another_architecture_is_refused(runner: Path) -> None:
    done = run(runner, [EMULATOR, "-cpu", "cortex-a53"], isa="avx2")
    assert done.returncode == 2
    assert "'avx2' is not available here: this CPU offers serial, neon" in done.stderr
