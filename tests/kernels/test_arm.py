"""Every kernel on emulated ARM cores: cross-compiled for plain armv8-a, run by qemu."""

import re
import shutil
import signal
from pathlib import Path

import pytest
from c_runner import CEXT, FAMILIES, RUNNERS, build, families_of, run

COMPILER = "aarch64-linux-gnu-gcc"
EMULATOR = "qemu-aarch64-static"

missing = [tool for tool in (COMPILER, EMULATOR) if shutil.which(tool) is None]
pytestmark = pytest.mark.skipif(
    bool(missing),
    reason=f"{' and '.join(missing)} missing (Debian: gcc-aarch64-linux-gnu, qemu-user-static)",
)

# What each core has beyond the serial path, plainest first: Pi 3, Pi 4, Pi 5, a server, and all of them.
CORES = {
    "cortex-a53": ["neon"],
    "cortex-a72": ["neon"],
    "cortex-a76": ["neon", "dotprod"],
    "neoverse-n1": ["neon", "dotprod"],
    "max": ["neon", "dotprod", "i8mm"],
}
STATIC = [COMPILER, "-static", "-march=armv8-a"]


def written(family: str) -> set[str]:
    """Paths that a family has in its table of versions."""
    sources = "".join(path.read_text() for path in (CEXT / family).glob("*.c"))
    return {name.lower() for name in re.findall(r"^ *\[FE_(\w+)\] = ", sources, re.MULTILINE)}


def fastest(family: str, core: str) -> str:
    """The path that has to run: the best that the core has and the family was written for."""
    return [isa for isa in ["serial", *CORES[core]] if isa in written(family)][-1]


@pytest.fixture(scope="module", params=RUNNERS)
def runner(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(request.param, tmp_path_factory.mktemp("arm"), STATIC)


@pytest.mark.parametrize("core", CORES)
def test_the_best_path_is_dispatched_and_all_are_right(runner: Path, core: str) -> None:
    """The runner checks each path of the core, the serial one among them, against the same definition."""
    done = run(runner, [EMULATOR, "-cpu", core])

    assert done.returncode == 0, done.stdout + done.stderr
    for family in families_of(runner):
        assert f"{family}: {fastest(family, core)}" in done.stdout.splitlines()


@pytest.mark.parametrize("family", FAMILIES)
def test_each_family_has_neon(family: str) -> None:
    assert {"serial", "neon"} <= written(family)


def test_serial_can_be_forced(runner: Path) -> None:
    done = run(runner, [EMULATOR, "-cpu", "cortex-a53"], isa="serial")
    assert done.returncode == 0, done.stdout + done.stderr
    for family in families_of(runner):
        assert f"{family}: serial" in done.stdout.splitlines()


def test_an_instruction_set_of_another_architecture_is_refused(runner: Path) -> None:
    done = run(runner, [EMULATOR, "-cpu", "cortex-a53"], isa="avx2")
    assert done.returncode == 2
    assert "'avx2' is not available here: this CPU offers serial, neon" in done.stderr


def test_vectors_that_a_core_lacks_kill_the_runner(tmp_path: Path) -> None:
    """Compiled by flags of the file instead of by its functions: the path is called neon, and is not."""
    program = build("mix", tmp_path, [COMPILER, "-static", "-march=armv8.2-a+sve"])

    everything = run(program, [EMULATOR, "-cpu", "max"])
    assert everything.returncode == 0, everything.stdout + everything.stderr
    pi4 = run(program, [EMULATOR, "-cpu", "cortex-a72"])
    assert pi4.returncode == -signal.SIGILL, pi4.stdout + pi4.stderr


@pytest.mark.parametrize("family", [family for family in FAMILIES if "dotprod" in written(family)])
def test_a_dot_product_forced_on_a_core_without_kills_the_runner(family: str, tmp_path: Path) -> None:
    """A dispatch that believes whatever it is told: the kernel's word on what the CPU has is replaced."""
    liar = tmp_path / "liar.c"
    liar.write_text("unsigned long __wrap_getauxval(unsigned long type) { (void)type; return ~0ul; }\n")
    program = build(family, tmp_path, [*STATIC, "-Wl,--wrap=getauxval", str(liar)])

    everything = run(program, [EMULATOR, "-cpu", "max"])
    assert everything.returncode == 0, everything.stdout + everything.stderr
    pi4 = run(program, [EMULATOR, "-cpu", "cortex-a72"])
    assert pi4.returncode == -signal.SIGILL, pi4.stdout + pi4.stderr
