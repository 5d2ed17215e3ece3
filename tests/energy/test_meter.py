"""Meters: joules of a block, with idle power subtracted."""

import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from layouts import JETSON_NANO, LAPTOP, XEON, build

from flower_edge.energy import Meter, Reading, SensorError, find_sensors, measure_idle
from flower_edge.energy.sensor import Area, PowerSensor

pytestmark = pytest.mark.board

NANO_POWER = "sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0/in_power0_input"


class Ramp(PowerSensor):
    """Watts that grow by `slope` from one look to the next."""

    source, period = "a ramp", 0.01

    def __init__(self, slope: float) -> None:
        self._slope = slope
        self._looks = 0

    def watts(self) -> float:
        self._looks += 1
        return self._slope * (self._looks - 1)


def test_the_area_is_that_of_trapezoids() -> None:
    area = Area(Ramp(2.0))
    for now in (10.0, 11.0, 13.0):
        area.look(now)

    # 0, 2 and 4 W after 0, 1 and 3 s.
    assert area.joules == pytest.approx(1 * 1.0 + 2 * 3.0)


class Recorded(PowerSensor):
    """Watts as they were recorded."""

    source, period = "a recording", 0.01

    def __init__(self, watts: list[float]) -> None:
        self._watts = iter(watts)

    def watts(self) -> float:
        return next(self._watts)


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0, 100), st.floats(1e-3, 10)), min_size=1, max_size=30))
def test_the_area_is_numpy_s(samples: list[tuple[float, float]]) -> None:
    watts = [power for power, _ in samples]
    times = np.cumsum([seconds for _, seconds in samples])
    area = Area(Recorded(watts))
    for now in times.tolist():
        area.look(now)

    assert area.joules == pytest.approx(float(np.trapezoid(watts, times)), rel=1e-9, abs=1e-9)


def test_no_sensor_means_no_meter(tmp_path: Path) -> None:
    assert Meter.find(idle_watts=1.0, root=tmp_path) is None


def test_a_block_is_measured_and_idle_subtracted(tmp_path: Path) -> None:
    meter = Meter.find(idle_watts=2.0, root=build(tmp_path, JETSON_NANO))
    assert meter is not None

    with meter.measure() as measurement:
        time.sleep(0.25)
    reading = measurement.reading

    assert reading.seconds >= 0.25
    assert reading.total_joules == pytest.approx(2.381 * reading.seconds)
    assert reading.joules == pytest.approx(0.381 * reading.seconds)
    assert reading.resolution == pytest.approx(2.381 * 0.1)
    assert reading.source == "INA3221 (POM_5V_IN)"
    assert "J above idle" in str(reading)
    assert "measured: INA3221" in str(reading)


def test_power_is_sampled_while_the_block_runs(tmp_path: Path) -> None:
    """A peak between both ends counts: a meter that only looked there would miss it."""
    root = build(tmp_path, JETSON_NANO)
    meter = Meter(find_sensors(root).sensors[0], idle_watts=0.0, interval=0.02)

    with meter.measure() as measurement:
        time.sleep(0.1)
        # Replaced as a whole, so that no sample reads half a number.
        (root / "new").write_text("100000\n")
        (root / "new").replace(root / NANO_POWER)
        time.sleep(0.3)
        (root / "new").write_text("2381\n")
        (root / "new").replace(root / NANO_POWER)

    # Two trapezoids of 0.02 s are on the peak's flanks; a loaded machine may stretch anything but the peak.
    assert measurement.reading.total_joules > 100 * 0.2


def test_counters_are_read_at_both_ends(tmp_path: Path) -> None:
    root = build(tmp_path, XEON)
    meter = Meter.find(idle_watts=0.0, root=root)
    assert meter is not None
    assert meter.interval == 10.0

    with meter.measure() as measurement:
        build(root, {"sys/class/powercap/intel-rapl:1/energy_uj": "4000000"})
    assert measurement.reading.total_joules == pytest.approx(3.0)
    assert measurement.reading.resolution <= 3.0


def test_a_sensor_that_fails_leaves_the_block_alone_and_no_reading(tmp_path: Path) -> None:
    root = build(tmp_path, LAPTOP)
    meter = Meter(find_sensors(root).sensors[0], idle_watts=0.0, interval=0.02)

    with meter.measure() as measurement:
        build(root, {"sys/class/power_supply/BAT0/status": "Charging"})
        time.sleep(0.3)
        # Failed for good, though the battery discharges again at the end.
        build(root, {"sys/class/power_supply/BAT0/status": "Discharging"})

    with pytest.raises(SensorError, match=r"battery \(BAT0\) failed in the measurement.*unplug it"):
        _ = measurement.reading


@pytest.mark.parametrize("when", ["before", "during"])
def test_what_the_block_raises_comes_through(tmp_path: Path, when: str) -> None:
    root = build(tmp_path, JETSON_NANO)
    meter = Meter.find(idle_watts=0.0, root=root)
    assert meter is not None
    before = threading.active_count()
    measurement = meter.measure()

    def fail() -> None:
        with measurement:
            (root / NANO_POWER).unlink(missing_ok=True)
            _ = 1 / 0

    if when == "before":
        (root / NANO_POWER).unlink()
    with pytest.raises(ZeroDivisionError):
        fail()
    with pytest.raises(SensorError, match="failed in the measurement"):
        _ = measurement.reading
    assert threading.active_count() == before


def test_there_is_no_reading_before_the_end(tmp_path: Path) -> None:
    meter = Meter.find(idle_watts=0.0, root=build(tmp_path, JETSON_NANO))
    assert meter is not None

    with meter.measure() as measurement, pytest.raises(ValueError, match="no reading yet"):
        _ = measurement.reading
    assert isinstance(measurement.reading, Reading)


def test_sensors_that_cannot_be_read_are_an_error_with_advice(tmp_path: Path) -> None:
    build(tmp_path, {**LAPTOP, "sys/class/power_supply/BAT0/status": "Full"})

    with pytest.raises(OSError, match=r"no energy sensor can be read.*unplug it to measure"):
        Meter.find(idle_watts=0.0, root=tmp_path)


def test_idle_power_is_a_mean(tmp_path: Path) -> None:
    (sensor,) = find_sensors(build(tmp_path, JETSON_NANO)).sensors

    assert measure_idle(sensor, seconds=1.0) == pytest.approx(2.381)
    with pytest.raises(ValueError, match=r"seconds is 0.5, expected at least 1 for INA3221"):
        measure_idle(sensor, seconds=0.5)


@pytest.mark.parametrize("idle", [-1.0, float("nan"), float("inf"), True])
def test_idle_power_out_of_its_range_is_refused(tmp_path: Path, idle: float) -> None:
    (sensor,) = find_sensors(build(tmp_path, JETSON_NANO)).sensors
    with pytest.raises(ValueError, match="idle_watts is"):
        Meter(sensor, idle)


@pytest.mark.parametrize("interval", [0.0, 0.001, float("nan"), float("inf")])
def test_an_interval_out_of_its_range_is_refused(tmp_path: Path, interval: float) -> None:
    (sensor,) = find_sensors(build(tmp_path, JETSON_NANO)).sensors
    with pytest.raises(ValueError, match="interval is"):
        Meter(sensor, 0.0, interval)
