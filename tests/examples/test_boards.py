"""The systemd unit of examples/boards, as systemd itself judges it."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

BOARDS = Path(__file__).parent.parent.parent / "examples/boards"
UNIT = BOARDS / "flower-supernode.service"

pytestmark = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze missing")


def analyze(*args: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["systemd-analyze", *map(str, args)], capture_output=True, text=True, check=False, timeout=60
    )


def test_the_unit_is_correct(tmp_path: Path) -> None:
    """Every key is known and every value valid; the programs are not installed here, so another stands in."""
    unit = tmp_path / UNIT.name
    unit.write_text(re.sub(r"/opt/flower/bin/[\w-]+", "/bin/true", UNIT.read_text()))

    done = analyze("verify", "--man=no", "--recursive-errors=no", unit)

    complaints = [line for line in done.stderr.splitlines() if UNIT.name in line]
    assert complaints == [], done.stderr


def test_a_mistake_in_the_unit_would_be_seen(tmp_path: Path) -> None:
    unit = tmp_path / UNIT.name
    text = re.sub(r"/opt/flower/bin/[\w-]+", "/bin/true", UNIT.read_text())
    unit.write_text(text.replace("ProtectHome=yes", "ProtectHome=perhaps").replace("UMask", "Umask"))

    done = analyze("verify", "--man=no", "--recursive-errors=no", unit)

    assert "Failed to parse protect home" in done.stderr
    assert "Umask" in done.stderr


def test_the_unit_can_touch_little() -> None:
    """systemd's score goes from 0, well sandboxed, to 10; a service without any setting has 9.6."""
    done = analyze("security", "--offline=true", "--json=short", UNIT)
    assert done.returncode == 0, done.stderr

    exposures = {check["json_field"]: check["exposure"] for check in json.loads(done.stdout)}
    for sure in ("CapabilityBoundingSet_CAP_SYS_ADMIN", "ProtectSystem", "ProtectHome", "NoNewPrivileges"):
        assert not float(exposures[sure] or 0), sure
    overall = analyze("security", "--offline=true", "--threshold=20", "--no-pager", UNIT)
    assert overall.returncode == 0, overall.stdout.splitlines()[-2:]
