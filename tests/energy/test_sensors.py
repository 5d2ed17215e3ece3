"""Sensors on recorded layouts."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from layouts import AGX_ORIN, JETSON_NANO, LAPTOP, ORIN_NANO, PI5, UPS_HAT, XEON, build, with_vcgencmd

from flower_edge.energy import find_sensors
from flower_edge.energy.rapl import Counters, Zone
from flower_edge.energy.sensor import PowerSensor

pytestmark = pytest.mark.board

NOBODY = 65534


@contextmanager
def unprivileged() -> Iterator[None]:
    """Run as nobody if the tests run as root, who may read everything."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


def open_to_all(path: Path) -> None:
    """Let nobody come as far as `path`."""
    for folder in [path, *path.parents]:
        if not os.access(folder, os.W_OK) or folder == Path(folder.anchor):
            break
        folder.chmod(folder.stat().st_mode | 0o055)


def watts(root: Path) -> float:
    (sensor,) = find_sensors(root).sensors
    assert isinstance(sensor, PowerSensor)
    return sensor.watts()


def test_without_a_sensor_nothing_is_found(tmp_path: Path) -> None:
    found = find_sensors(tmp_path)

    assert found.sensors == ()
    assert found.obstacles == ()


def test_rapl_adds_packages_and_memory(tmp_path: Path) -> None:
    root = build(tmp_path, XEON)
    (sensor,) = find_sensors(root).sensors

    assert sensor.source == "RAPL (package-0, dram of package-0, package-1)"
    gauge = sensor.gauge()
    gauge.look(0.0)
    assert gauge.joules == 0
    build(
        root,
        {
            "sys/class/powercap/intel-rapl:0/energy_uj": "261913328850",
            "sys/class/powercap/intel-rapl:0:0/energy_uj": "7000000",
            "sys/class/powercap/intel-rapl:1/energy_uj": "1500000",
        },
    )
    gauge.look(1.0)
    assert gauge.joules == pytest.approx(10 + 2 + 0.5)


def test_rapl_counters_start_again_from_zero(tmp_path: Path) -> None:
    root = build(tmp_path, XEON)
    gauge = find_sensors(root).sensors[0].gauge()
    gauge.look(0.0)

    # 240 J are left in the turn; the counter's zero takes one µJ of its own.
    build(root, {"sys/class/powercap/intel-rapl:0/energy_uj": "4999999"})
    gauge.look(1.0)
    assert gauge.joules == pytest.approx(245.0, abs=1e-9)
    build(root, {"sys/class/powercap/intel-rapl:0/energy_uj": "9999999"})
    gauge.look(2.0)
    assert gauge.joules == pytest.approx(250.0, abs=1e-9)


@settings(deadline=None)
@given(
    wraps_after=st.integers(10**6, 10**12),
    start=st.integers(0, 10**12),
    steps=st.lists(st.integers(0, 10**6), min_size=1, max_size=20),
)
def test_counters_add_up_whenever_they_wrap(wraps_after: int, start: int, steps: list[int]) -> None:
    """Whatever the counter's length and beginning, as long as it is seen once a turn."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "energy_uj"
        gauge = Counters([Zone("package-0", file, wraps_after)])
        total = start
        for number, step in enumerate([0, *steps]):
            total += step
            file.write_text(f"{total % (wraps_after + 1)}\n")
            gauge.look(float(number))

    assert gauge.joules == pytest.approx(sum(steps) / 1e6, abs=1e-9)


def test_a_rapl_counter_that_may_not_be_read_is_an_obstacle(tmp_path: Path) -> None:
    root = build(tmp_path, XEON)
    counter = root / "sys/class/powercap/intel-rapl:0/energy_uj"
    counter.chmod(0o400 if os.geteuid() == 0 else 0)
    open_to_all(counter.parent)

    with unprivileged():
        found = find_sensors(root)

    assert found.sensors == ()
    (obstacle,) = found.obstacles
    assert "RAPL is there" in obstacle
    assert f"chmod 440 {counter}" in obstacle


def test_the_rail_of_the_whole_board_counts_alone(tmp_path: Path) -> None:
    assert watts(build(tmp_path / "orin", ORIN_NANO)) == pytest.approx(5.064 * 0.976)
    assert watts(build(tmp_path / "nano", JETSON_NANO)) == pytest.approx(2.381)
    (sensor,) = find_sensors(tmp_path / "nano").sensors
    assert sensor.source == "INA3221 (POM_5V_IN)"


def test_without_such_a_rail_they_are_added_and_none_counts_twice(tmp_path: Path) -> None:
    root = build(tmp_path, AGX_ORIN)

    assert watts(root) == pytest.approx(19 * 0.1 + 19 * 0.02 + 5 * 0.6)
    assert find_sensors(root).sensors[0].source == "INA3221 (VDD_GPU_SOC + VDD_CPU_CV + VIN_SYS_5V0)"


def test_a_channel_without_numbers_is_left_out(tmp_path: Path) -> None:
    root = build(tmp_path, {**AGX_ORIN, "sys/class/hwmon/hwmon1/curr2_input": ""})

    assert watts(root) == pytest.approx(19 * 0.1 + 5 * 0.6)


def test_the_pi_s_rails_are_added(tmp_path: Path) -> None:
    root = with_vcgencmd(tmp_path, PI5)
    expected = (
        *(0.00195186 * 3.7072, 0.125895 * 3.302609, 0.2312954 * 1.812941, 0.1883545 * 1.106226),
        *(0.306442 * 0.8014644, 0.82156 * 0.8120382, 0.00311355 * 0.7991202, 0.0003663 * 5.12416),
    )

    assert watts(root) == pytest.approx(sum(expected), rel=1e-6)
    assert find_sensors(root).sensors[0].source == "Raspberry Pi PMIC (12 rails)"


def test_a_pi_without_the_chip_has_no_sensor(tmp_path: Path) -> None:
    # A Pi 4.
    found = find_sensors(with_vcgencmd(tmp_path, 'error=1 error_msg="Command not registered"\n'))

    assert found.sensors == found.obstacles == ()


@pytest.mark.parametrize(
    "says", ["VCHI initialization failed\n", "Can't open device file: /dev/vcio\nTry creating one\n"]
)
def test_a_pi_that_may_not_be_asked_is_an_obstacle(tmp_path: Path, says: str) -> None:
    found = find_sensors(with_vcgencmd(tmp_path, says, status=255))

    assert found.sensors == ()
    assert "add the user to the group video" in found.obstacles[0]


def test_a_battery_says_what_leaves_it(tmp_path: Path) -> None:
    assert watts(build(tmp_path / "laptop", LAPTOP)) == pytest.approx(4.21)
    assert find_sensors(tmp_path / "laptop").sensors[0].source == "battery (BAT0)"
    assert watts(build(tmp_path / "hat", UPS_HAT)) == pytest.approx(3.9 * 0.8)


@pytest.mark.parametrize("status", ["Charging", "Full", "Not charging", ""])
def test_a_battery_on_mains_says_nothing_of_the_board(tmp_path: Path, status: str) -> None:
    root = build(tmp_path, {**LAPTOP, "sys/class/power_supply/BAT0/status": status})
    found = find_sensors(root)

    assert found.sensors == ()
    assert "unplug it to measure" in found.obstacles[0]


def test_the_whole_board_comes_before_the_processor_and_the_battery_last(tmp_path: Path) -> None:
    root = with_vcgencmd(build(tmp_path, {**XEON, **ORIN_NANO, **LAPTOP}), PI5)

    kinds = [sensor.source.split(" (")[0] for sensor in find_sensors(root).sensors]
    assert kinds == ["INA3221", "Raspberry Pi PMIC", "RAPL", "battery"]
