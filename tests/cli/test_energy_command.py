"""``flower-edge energy`` and the energies of ``flower-edge profile``, on recorded sensors and on none."""

import sys
from pathlib import Path

import pytest
from command import refused, run

from flower_edge.cli import meter, profile_energy
from flower_edge.energy import Found, find_sensors

RAIL = "sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0"
NO_SENSOR = Found((), ())


@pytest.fixture
def jetson(tmp_path: Path) -> Found:
    folder = tmp_path / RAIL
    folder.mkdir(parents=True)
    (folder / "rail_name_0").write_text("POM_5V_IN\n")
    (folder / "in_power0_input").write_text("2500\n")
    return find_sensors(tmp_path)


def test_idle_power(monkeypatch: pytest.MonkeyPatch, jetson: Found) -> None:
    monkeypatch.setattr(meter, "find_sensors", lambda: jetson)

    done = run("energy", "--seconds", "1")

    assert done.exit_code == 0, done.output
    assert done.stdout == "idle: 2.5 W (measured: INA3221 (POM_5V_IN), 1 s)\n"


def test_a_command_is_measured_and_its_status_is_kept(monkeypatch: pytest.MonkeyPatch, jetson: Found) -> None:
    monkeypatch.setattr(meter, "find_sensors", lambda: jetson)

    done = run("energy", "--idle-watts", "0.5", "--", sys.executable, "-c", "raise SystemExit(3)")

    assert done.exit_code == 3
    assert "J above idle in" in done.stdout
    assert "measured: INA3221 (POM_5V_IN)" in done.stdout


def test_without_a_sensor_nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meter, "find_sensors", lambda: NO_SENSOR)

    assert "no energy sensor: nothing was measured" in refused("energy", "--seconds", "1")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--seconds", "0.5"), "seconds is 0.5, expected at least 1"),
        (("--idle-watts", "-1", "--", "true"), "idle_watts is -1.0"),
        (("--idle-watts", "1", "--", "no-such-command"), "no-such-command"),
    ],
)
def test_what_is_refused(
    monkeypatch: pytest.MonkeyPatch, jetson: Found, arguments: tuple[str, ...], message: str
) -> None:
    monkeypatch.setattr(meter, "find_sensors", lambda: jetson)

    assert message in refused("energy", *arguments)


PROFILE = ("profile", "profiled_models:net", "--input", "2,3,8,8", "--repeats", "1")


@pytest.fixture
def _model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "profiled_models.py").write_text(
        "from torch import nn\n\ndef net():\n"
        "    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 5))\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "profiled_models", raising=False)


@pytest.mark.usefixtures("_model")
def test_a_profile_measures_counts_and_models(monkeypatch: pytest.MonkeyPatch, jetson: Found) -> None:
    monkeypatch.setattr(profile_energy, "find_sensors", lambda: jetson)
    monkeypatch.setattr(profile_energy, "SECONDS", 0.1)

    done = run(*PROFILE)

    assert done.exit_code == 0, done.stderr
    headings, _, row, *_ = done.stdout.partition("energy of a step")[2].splitlines()[3:]
    assert headings.split() == ["measured", *["counted"] * 2, *["modelled"] * 2]
    joules, macs, *_ = row.split()
    # Nothing but the same 2.5 W as when idle.
    assert float(joules) == pytest.approx(0.0, abs=1e-3)
    # 2 images; 36 outputs of 4 × 27; twice, since the image needs no gradient; and three times 144 × 5.
    assert float(macs) == pytest.approx(2 * (2 * 36 * 4 * 27 + 3 * 144 * 5) / 1e6, rel=1e-3)
    assert "INA3221 (POM_5V_IN)" in done.stdout


@pytest.mark.usefixtures("_model")
def test_without_a_sensor_a_profile_has_no_measured_joules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profile_energy, "find_sensors", lambda: NO_SENSOR)

    done = run(*PROFILE)

    assert done.exit_code == 0, done.stderr
    assert "measured: no energy sensor." in done.stdout
    row = done.stdout.partition("energy of a step")[2].splitlines()[5]
    assert row.split()[0] == "\N{EN DASH}"
