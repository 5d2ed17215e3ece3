"""The wheels of `make wheels`: what they need and weigh, and that installing one changes nothing else."""

import csv
import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BOARD = Path(os.environ.get("FLOWER_EDGE_BOARD", "/var/tmp/flower_edge-board"))
"""The arm64 root of `make board`."""

TOOLS = ("aarch64-linux-gnu-gcc", "make", "gcc", "objdump", "patchelf")
PATH = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"

missing = [tool for tool in TOOLS if shutil.which(tool, path=PATH) is None]
if importlib.util.find_spec("auditwheel") is None:
    missing.append("auditwheel")
pytestmark = pytest.mark.skipif(bool(missing), reason=f"{', '.join(missing)} missing (extra: wheels)")


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """By architecture; made with this Python instead of .venv."""
    dist = tmp_path_factory.mktemp("dist")
    overrides = [f"BIN={Path(sys.executable).parent}", "STAMP=", f"DIST={dist}"]
    done = subprocess.run(
        ["make", "wheels", *overrides], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return {path.stem.rpartition("manylinux_2_17_")[2]: path for path in dist.glob("*.whl")}


@pytest.mark.parametrize(("architecture", "machine"), [("x86_64", 62), ("aarch64", 183)])
def test_a_wheel_is_manylinux_and_small(
    wheels: dict[str, Path], architecture: str, machine: int, tmp_path: Path
) -> None:
    wheel = wheels[architecture]

    assert "-cp311-abi3-manylinux2014_" in wheel.name
    assert wheel.stat().st_size < 1_000_000
    with zipfile.ZipFile(wheel) as archive:
        extension = Path(archive.extract("flower_edge/_kernels.abi3.so", tmp_path))
        assert "flower_edge/clients/edge_client.py" in archive.namelist()
    # e_machine of the ELF header.
    assert int.from_bytes(extension.read_bytes()[18:20], "little") == machine
    if architecture == "x86_64":
        dynamic = subprocess.run(["objdump", "-T", extension], capture_output=True, text=True, check=True)
        versions = {tuple(map(int, v.split("."))) for v in re.findall(r"GLIBC_([\d.]+)", dynamic.stdout)}
        assert max(versions) <= (2, 17)


def test_installing_the_wheel_changes_no_other_package(wheels: dict[str, Path], tmp_path: Path) -> None:
    """Beside flwr and torch: nothing is replaced, nothing else comes in, and 5 MB at most are added."""
    python = bare_environment(tmp_path / "bare")
    install = [python, "-I", "-m", "pip", "install", "-q", "--no-index"]
    before = freeze(python)
    assert {"flwr", "numpy", "torch"} <= before.keys()
    assert "flower-edge" not in before

    report = tmp_path / "report.json"
    subprocess.run([*install, "--dry-run", "--report", report, wheels["x86_64"]], check=True)
    (planned,) = json.loads(report.read_text())["install"]
    assert planned["metadata"]["name"] == "flower_edge"
    subprocess.run([*install, "--no-deps", wheels["x86_64"]], check=True)

    after = freeze(python)
    assert after.pop("flower-edge")
    assert after == before
    (site,) = (tmp_path / "bare/lib").glob("python*/site-packages")
    assert installed_bytes(site) <= 5_000_000
    done = subprocess.run(
        [python, "-I", ROOT / "tests/wheel_runs.py"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("core", ["cortex-a53", "cortex-a72", "max"])
def test_the_wheel_of_boards_runs_its_kernels(wheels: dict[str, Path], core: str, tmp_path: Path) -> None:
    """With the Python and the numpy of an emulated board, which needs no root to read them."""
    python, emulator = BOARD / "usr/bin/python3.11", shutil.which("qemu-aarch64-static")
    numpy = BOARD / "opt/flower/lib/python3.11/site-packages"
    if emulator is None or not python.exists() or not (numpy / "numpy").exists():
        pytest.skip(f"no qemu-aarch64-static, or no arm64 root in {BOARD}: `make board` makes one, as root")
    with zipfile.ZipFile(wheels["aarch64"]) as archive:
        archive.extractall(tmp_path)
    paths = ("-E", "PYTHONHOME=/usr", "-E", f"PYTHONPATH={tmp_path}:{numpy}")

    done = subprocess.run(
        [emulator, "-L", BOARD, "-cpu", core, *paths, python, "-S", ROOT / "tests/wheel_runs.py"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )

    assert done.returncode == 0, done.stderr
    assert "mix              neon" in done.stdout.splitlines()
    assert f"int8             {'i8mm' if core == 'max' else 'neon'}" in done.stdout.splitlines()


def bare_environment(folder: Path) -> Path:
    """Make an environment with what is installed here except flower_edge; return its Python."""
    venv.create(folder, with_pip=True)
    (site,) = (folder / "lib").glob("python*/site-packages")
    for entry in Path(str(importlib.metadata.distribution("torch").locate_file(""))).iterdir():
        link = site / entry.name
        # pip and what comes with it are the environment's own.
        if "flower_edge" not in entry.name and not entry.name.startswith("pip") and not link.exists():
            link.symlink_to(entry)
    return folder / "bin/python"


def freeze(python: Path) -> dict[str, str]:
    done = subprocess.run([python, "-I", "-m", "pip", "freeze"], capture_output=True, text=True, check=True)
    lines = done.stdout.replace(" @ ", "==").splitlines()
    return {
        name.lower().replace("_", "-"): version
        for name, _, version in (line.partition("==") for line in lines)
    }


def installed_bytes(site: Path) -> int:
    """Sizes of all files that the wheel brought, compiled modules included."""
    (record,) = site.glob("flower_edge-*.dist-info/RECORD")
    files = [site / name for name, *_ in csv.reader(record.read_text().splitlines())]
    return sum(file.stat().st_size for file in files if file.exists())
