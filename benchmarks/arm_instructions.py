"""Instructions that the kernels take, plain and in vectors: on an emulated ARM core, and on this processor.

``python -m benchmarks.arm_instructions [--quick]``

Counted, never timed: a core's speed is another matter. One call of each family, as the difference between
a program that makes two and one that makes one. ARM: the extension's sources, cross-compiled for armv8-a and
run by qemu, one instruction at a time: as a Cortex-A72, and as cores that have more where a family has a path
for it. x86-64: valgrind's cachegrind. The serial version is
counted twice: as it is compiled, where the compiler may use vectors of its own (every armv8-a has them), and
with that turned off, which is what a chip without vectors would run.
"""

import shutil
import subprocess
import tempfile
import tomllib
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks.harness import Benchmark, run

ROOT = Path(__file__).parent.parent
FAMILIES = (
    "mix",
    "sign_bits",
    "gradient_filter",
    "spectrum",
    "int8",
    "range_evonorm",
    "byte_sums",
    "sparse_grad",
    "batch_norm",
)
CORES = {"cortex-a72": ("neon", FAMILIES), "cortex-a76": ("dotprod", ("int8",)), "max": ("i8mm", ("int8",))}
"""What runs on an emulated core, and which families it is counted for."""

LEAST = 2.5
"""Times fewer instructions that NEON has to take than a chip without vectors, in every family."""

SCALAR = ("-fno-tree-vectorize", "-fno-tree-slp-vectorize")


def build(folder: Path, name: str, compiler: tuple[str, ...]) -> Path:
    """Compile the extension's sources, without Python's, and the program that calls them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    (extension,) = project["tool"]["setuptools"]["ext-modules"]
    sources = [
        source
        for source in extension["sources"]
        if Path(source).name != "module.c" and not Path(source).name.startswith("bind_")
    ]
    program = folder / name
    flags = [flag for flag in extension["extra-compile-args"] if flag != "-fvisibility=hidden"]
    command = [*compiler, *flags, "-Icext", *sources, "cext/tests/calls.c", "-lm", "-o", str(program)]
    subprocess.run(command, check=True, cwd=ROOT)
    return program


def by_qemu(core: str, program: Path, isa: str, family: str, calls: int) -> int:
    """Count the instructions of a whole ARM program: each is one block that qemu logs."""
    emulator = ["qemu-aarch64-static", "-cpu", core, "-singlestep", "-d", "exec,nochain", "-D", "/dev/stderr"]
    with subprocess.Popen(
        [*emulator, str(program), family, str(calls)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={"FLOWER_EDGE_ISA": isa},
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        count = sum(chunk.count(b"\n") for chunk in iter(lambda: process.stderr.read(1 << 20), b""))
        _check(process.stdout.read().decode(), process.wait(), family, isa)
    return count


def by_cachegrind(program: Path, isa: str, family: str, calls: int) -> int:
    """Count the instructions of a whole program on this processor."""
    done = subprocess.run(
        [
            *("valgrind", "--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null"),
            *(str(program), family, str(calls)),
        ],
        capture_output=True,
        text=True,
        check=False,
        env={"FLOWER_EDGE_ISA": isa, "PATH": "/usr/bin:/bin"},
    )
    _check(done.stdout, done.returncode, family, isa)
    (line,) = (line for line in done.stderr.splitlines() if "I" in line and "refs:" in line)
    return int(line.rpartition(":")[2].replace(",", ""))


def _check(output: str, status: int, family: str, isa: str) -> None:
    if status or f"{family}: {isa}" not in output.splitlines():
        raise RuntimeError(f"expected {family} to run as {isa}: exit status {status}, said {output!r}")


def one_call(count: Callable[[Path, str, str, int], int], program: Path, isa: str, family: str) -> int:
    """Count the instructions of one call."""
    return count(program, isa, family, 2) - count(program, isa, family, 1)


def main(bench: Benchmark) -> None:
    """Count on all machines for which the tools are there."""
    arm = ("aarch64-linux-gnu-gcc", "-static", "-march=armv8-a")
    machines = {
        f"{core} (qemu)": (partial(by_qemu, core), vectors, arm, families)
        for core, (vectors, families) in CORES.items()
    }
    machines["x86-64 (cachegrind)"] = by_cachegrind, "avx2", ("gcc",), FAMILIES
    for tool in ("aarch64-linux-gnu-gcc", "qemu-aarch64-static", "valgrind"):
        if shutil.which(tool) is None:
            raise SystemExit(
                f"{tool} is missing (Debian: gcc-aarch64-linux-gnu, libc6-dev-arm64-cross, "
                "qemu-user-static, valgrind)"
            )
    with tempfile.TemporaryDirectory() as name:
        for machine, (count, vectors, compiler, families) in machines.items():
            program = build(Path(name), "calls", compiler)
            scalar_program = build(Path(name), "scalar", (*compiler, *SCALAR))
            for family in families[: 1 if bench.quick else None]:
                scalar = one_call(count, scalar_program, "serial", family)
                serial = one_call(count, program, "serial", family)
                ours = one_call(count, program, vectors, family)
                bench.row(
                    machine=machine,
                    family=family,
                    scalar_counted=scalar,
                    serial_counted=serial,
                    vectors=vectors,
                    vectors_counted=ours,
                    times_fewer_than_scalar=scalar / ours,
                    times_fewer_than_serial=serial / ours,
                )
                if compiler == arm:
                    text = f"{family}: times fewer instructions with {vectors}, counted"
                    bench.at_least(text, scalar / ours, LEAST)


if __name__ == "__main__":
    run("arm_instructions", __doc__, main)
