"""Builds and runs the C test runners, natively or for another machine."""

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

CEXT = Path(__file__).parents[2] / "cext"
# What has no kernels of its own: the families that it is made of.
MADE_OF = {"chain": ("int8", "range_evonorm")}
RUNNERS = sorted(path.name.removesuffix("_test.c") for path in (CEXT / "tests").glob("*_test.c"))
FAMILIES = [name for name in RUNNERS if name not in MADE_OF]


def families_of(program: Path) -> tuple[str, ...]:
    """List the families whose kernels a runner runs."""
    name = program.name.removesuffix("_test")
    return MADE_OF.get(name, (name,))


def build(family: str, into: Path, compiler: Sequence[str] = ("gcc",), level: str = "-O2") -> Path:
    """Compile the runner of a kernel family, with warnings as errors; return the program."""
    program = into / f"{family}_test"
    sources = [
        CEXT / "cpu.c",
        CEXT / "parallel.c",
        *sorted(path for each in (family, *MADE_OF.get(family, ())) for path in (CEXT / each).glob("*.c")),
        CEXT / "tests" / f"{family}_test.c",
    ]
    command = [
        *compiler,
        "-std=c11",
        level,
        "-fpeel-loops",
        "-ffp-contract=off",
        "-Wall",
        "-Wextra",
        "-Werror",
        f"-I{CEXT}",
        *map(str, sources),
    ]
    subprocess.run([*command, "-lm", "-o", str(program)], check=True)
    return program


def run(program: Path, emulator: Sequence[str] = (), isa: str = "") -> subprocess.CompletedProcess[str]:
    """Run a runner, with ``FLOWER_EDGE_ISA`` set to `isa`, and capture what it says."""
    environment = os.environ | {"FLOWER_EDGE_ISA": isa}
    return subprocess.run(
        [*emulator, str(program)], env=environment, capture_output=True, text=True, check=False, timeout=120
    )
