"""``flower-edge doctor``, on this machine and on what other machines would show."""

import importlib.util
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import SimpleNamespace

import pytest
from command import refused, run

from flower_edge import kernels
from flower_edge.cli import checks


@pytest.fixture
def listening() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def closed() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"127.0.0.1:{server.getsockname()[1]}"


def test_this_machine(listening: str, closed: str) -> None:
    done = run("doctor", "--superlink", listening, "--peer", closed, "--peer", listening, "--json")
    document = json.loads(done.stdout)
    found = {check["name"]: check for check in document["checks"]}

    assert done.exit_code == 1
    assert not document["ok"]
    assert found[f"SuperLink {listening}"]["state"] == "ok"
    assert found[f"peer {listening}"]["state"] == "ok"
    assert found[f"peer {closed}"]["state"] == "fix"
    assert "nothing listens" in found[f"peer {closed}"]["advice"]
    assert found["Python"]["found"].startswith(".".join(map(str, sys.version_info[:3])))
    for family, version in kernels.explain().versions.items():
        assert f"{family} {version}" in found["kernels"]["found"]
    for check in document["checks"]:
        assert (check["advice"] == "") == (check["state"] == "ok"), check


def test_for_people(monkeypatch: pytest.MonkeyPatch, closed: str) -> None:
    """Without the torch of a subprocess, which the test above tries."""
    monkeypatch.setattr(checks, "_TRY_TORCH", "pass")

    done = run("doctor", "--peer", closed)

    assert done.exit_code == 1
    assert f"To fix: peer {closed}." in done.stdout
    assert "→ start it, or open port" in done.stdout


def test_nothing_to_fix_is_exit_status_0(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("python", "flwr", "torch", "compiled_kernels", "clock", "memory", "disk"):
        monkeypatch.setattr(checks, name, lambda: checks.Check("well", "ok", "found"))

    done = run("doctor")

    assert done.exit_code == 0
    assert "Nothing has to be fixed." in done.stdout


@pytest.mark.parametrize("address", ["10.0.0.2", "10.0.0.2:", ":80", "host:0", "host:65536", "::1:80", "h:p"])
def test_an_address_that_is_none_is_refused_before_anything_is_checked(address: str) -> None:
    assert "expected HOST:PORT" in refused("doctor", "--peer", address)


def test_addresses() -> None:
    assert checks.parse_address("board-7.local:9443") == ("board-7.local", 9443)
    assert checks.parse_address("[fd00::7]:9443") == ("fd00::7", 9443)


def test_a_name_that_nobody_knows_and_a_host_that_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    assert checks.reachable("peer", "no-such-host.invalid:80").state == "fix"

    def silent(*_: object, **__: object) -> None:
        raise TimeoutError

    monkeypatch.setattr(socket, "create_connection", silent)
    check = checks.reachable("peer", "10.0.0.2:80", seconds=0.5)
    assert (check.state, check.found) == ("fix", "no answer in 0.5 s")
    assert "firewalls" in check.advice


def fake_torch(monkeypatch: pytest.MonkeyPatch, folder: Path, version: str, cuda: str | None) -> None:
    """Have a torch installed whose version.py says what those of its wheels do."""
    folder.mkdir()
    (folder / "version.py").write_text(
        "from typing import Optional\n"
        f"__version__ = '{version}'\ncuda: Optional[str] = {cuda!r}\nhip: Optional[str] = None\n"
    )
    spec = ModuleSpec("torch", None, origin=str(folder / "__init__.py"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    monkeypatch.setattr(checks, "_version", lambda package: version)
    monkeypatch.setattr(checks, "_TRY_TORCH", "pass")


def test_a_cuda_build_on_a_board_without_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_torch(monkeypatch, tmp_path / "torch", "2.11.0", "12.8")

    check = checks.torch(tmp_path)
    assert check.state == "fix"
    assert "built for CUDA 12.8" in check.found
    assert "download.pytorch.org/whl/cpu" in check.advice

    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/nvhost-gpu").touch()
    assert checks.torch(tmp_path).state == "ok"


def test_a_torch_that_is_too_old_or_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_torch(monkeypatch, tmp_path / "torch", "2.9.1", None)
    assert "2.10 or newer" in checks.torch(tmp_path).advice

    monkeypatch.setattr(checks, "_version", lambda package: None)
    check = checks.torch(tmp_path)
    assert check.state == "fix"
    assert "can mix, but not train" in check.found


@pytest.mark.parametrize(
    ("program", "found"),
    [
        ("import os; os.kill(os.getpid(), 4)", "instructions that this processor lacks (SIGILL)"),
        ("raise ImportError('libgomp.so.1: cannot open')", "ImportError: libgomp.so.1: cannot open"),
    ],
)
def test_a_torch_that_does_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, found: str
) -> None:
    fake_torch(monkeypatch, tmp_path / "torch", "2.10.0+cpu", None)
    monkeypatch.setattr(checks, "_TRY_TORCH", program)

    check = checks.torch(tmp_path)

    assert check.state == "fix"
    assert found in check.found
    assert "2.10 itself does not run on ARMv8.0" in check.advice


def test_kernels_that_are_missing_or_held_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOWER_EDGE_ISA", "serial")
    assert checks.compiled_kernels().state == "note"

    twins = SimpleNamespace(versions={"mix": "numpy"}, cpu="", reason="slow twins, since it is not built")
    monkeypatch.setattr(kernels, "explain", lambda: twins)
    assert checks.compiled_kernels() == checks.Check("kernels", "fix", "mix numpy", twins.reason)
    assert "not probed" in checks.processor().found


def test_a_clock_before_the_installation_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    check = checks.clock(now=0.0)
    assert check.state == "fix"
    assert check.found.startswith("1970-01-01")

    for synchronised, state in ((True, "ok"), (False, "note")):
        monkeypatch.setattr(checks, "_is_synchronised", lambda known=synchronised: known)
        assert checks.clock(now=time.time()).state == state


def test_little_memory_and_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "proc").mkdir()
    meminfo = tmp_path / "proc/meminfo"
    meminfo.write_text("MemTotal: 948304 kB\nMemFree: 5000 kB\nMemAvailable: 301000 kB\nSwapFree: 0 kB\n")
    check = checks.memory(tmp_path)
    assert check.state == "fix"
    assert check.found == "308 MB of 971 MB free, and 0 MB of swap"
    meminfo.write_text("MemTotal: 8000000 kB\nMemAvailable: 7000000 kB\nSwapFree: 0 kB\n")
    assert checks.memory(tmp_path).state == "ok"
    meminfo.unlink()
    assert checks.memory(tmp_path).state == "note"

    monkeypatch.setattr(checks.shutil, "disk_usage", lambda folder: SimpleNamespace(free=10**8))
    assert "100 MB free" in checks.disk(tmp_path).found
    assert checks.disk(tmp_path).state == "fix"


def test_no_sensor_is_said(tmp_path: Path) -> None:
    check = checks.energy_sensors(tmp_path)

    assert (check.state, check.found) == ("note", "no energy sensor")
    assert "never measured" in check.advice


def test_the_page_size_is_the_kernel_s() -> None:
    assert checks.page_size().found == f"{os.sysconf('SC_PAGE_SIZE') // 1024} KB"
