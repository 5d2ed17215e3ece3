"""Joules of a piece of work, read from a sensor."""

import math
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from flower_edge.energy.find import find_sensors
from flower_edge.energy.sensor import Sensor, SensorError

# Between two looks at a counter, which only has to be seen once a turn.
_COUNTER_SECONDS = 10.0
_LEAST_INTERVAL = 0.01


@dataclass(frozen=True)
class Reading:
    """What a piece of work took, measured.

    Attributes
    ----------
    joules : float
        Of the work: what was drawn beyond idle power. Noise may make it negative for work of little power.
    total_joules : float
        Drawn in all.
    seconds : float
        How long the work took.
    resolution : float
        Joules between two looks at the power, at the mean power: work that takes no more than this is hardly
        told from none. The sensor's own errors come on top.
    idle_watts : float
        What was subtracted for each second.
    source : str
        The sensor, and what it covers.
    """

    joules: float
    total_joules: float
    seconds: float
    resolution: float
    idle_watts: float
    source: str

    def __str__(self) -> str:
        return (
            f"{self.joules:.4g} J above idle in {self.seconds:.4g} s (measured: {self.source}; "
            f"{self.total_joules:.4g} J in all, idle {self.idle_watts:.4g} W, "
            f"resolution {self.resolution:.2g} J)"
        )


class Meter:
    """Reads what work costs this board, with its idle power subtracted.

    A sensor sees the whole board, whatever runs there: measure one piece of work at a time, with nothing else
    running. Several simulated nodes on one machine cannot be told apart.

    Parameters
    ----------
    sensor : Sensor
        See `find_sensors`.
    idle_watts : float
        What the board draws when it does nothing, as `measure_idle` finds.
    interval : float, optional
        Seconds between two looks at the sensor. Default: the sensor's own period, and 10 s for counters,
        which need no samples.

    Raises
    ------
    ValueError
        If the idle power is negative or not finite, or the interval is shorter than 0.01 s.

    Examples
    --------
    >>> meter = Meter.find(idle_watts=2.7)
    >>> if meter is not None:
    ...     with meter.measure() as measurement:
    ...         train()
    ...     print(measurement.reading)
    """

    def __init__(self, sensor: Sensor, idle_watts: float, interval: float | None = None) -> None:
        if isinstance(idle_watts, bool) or not 0 <= idle_watts < math.inf:
            raise ValueError(f"idle_watts is {idle_watts}, expected a finite number of W, zero or more")
        if interval is None:
            interval = _COUNTER_SECONDS if sensor.period < _LEAST_INTERVAL else sensor.period
        if not _LEAST_INTERVAL <= interval < math.inf:
            raise ValueError(f"interval is {interval} s, expected at least {_LEAST_INTERVAL} s")
        self.sensor = sensor
        self.idle_watts = float(idle_watts)
        self.interval = interval

    @classmethod
    def find(cls, idle_watts: float, *, root: str | Path = "/") -> "Meter | None":
        """Return a meter on this machine's best sensor, None if it has none.

        Parameters
        ----------
        idle_watts : float
            As for `Meter`: from ``flower-edge energy``, or `measure_idle`.
        root : str or Path, default "/"
            As for `find_sensors`.

        Raises
        ------
        OSError
            If there are sensors, but none of them can be read; the message says what to do.
        """
        found = find_sensors(root)
        if found.sensors:
            return cls(found.sensors[0], idle_watts)
        if found.obstacles:
            raise OSError(f"no energy sensor can be read: {'; '.join(found.obstacles)}")
        return None

    def measure(self) -> "Measurement":
        """Return a measurement, which begins and ends with a ``with`` block."""
        return Measurement(self)


class Measurement:
    """One measurement: looks at the sensor while the block of a ``with`` statement runs.

    A sensor that fails never disturbs the block; asking for the `reading` says so.
    """

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._gauge = meter.sensor.gauge()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="energy meter", daemon=True)
        self._failure: OSError | None = None
        self._seconds: float | None = None
        self._began = 0.0

    def __enter__(self) -> "Measurement":
        self._began = time.monotonic()
        self._look(self._began)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        ended = time.monotonic()
        self._look(ended)
        self._seconds = ended - self._began

    @property
    def reading(self) -> Reading:
        """What the block took.

        Raises
        ------
        ValueError
            If the block has not ended.
        SensorError
            If the sensor failed while it ran.
        """
        if self._seconds is None:
            raise ValueError("no reading yet: it is there when the block of the with statement has ended")
        if self._failure is not None:
            raise SensorError(
                f"{self._meter.sensor.source} failed in the measurement: {self._failure}"
            ) from self._failure
        return self._read(self._seconds)

    def _look(self, now: float) -> None:
        if self._failure is None:
            try:
                self._gauge.look(now)
            except OSError as failure:
                self._failure = failure

    def _watch(self) -> None:
        while self._failure is None and not self._ended.wait(self._meter.interval):
            self._look(time.monotonic())

    def _read(self, seconds: float) -> Reading:
        meter, total = self._meter, self._gauge.joules
        between_looks = meter.sensor.period if meter.sensor.period < _LEAST_INTERVAL else meter.interval
        return Reading(
            joules=total - meter.idle_watts * seconds,
            total_joules=total,
            seconds=seconds,
            resolution=min(total, total / seconds * between_looks) if seconds else 0.0,
            idle_watts=meter.idle_watts,
            source=meter.sensor.source,
        )


def measure_idle(sensor: Sensor, seconds: float = 10.0) -> float:
    """Measure what the board draws when nothing runs on it; this call sleeps.

    Parameters
    ----------
    sensor : Sensor
    seconds : float, default 10.0
        How long; at least 10 periods of the sensor.

    Returns
    -------
    float
        W, the mean.

    Raises
    ------
    ValueError
        If `seconds` is too short for the sensor.
    SensorError
        If the sensor fails.
    """
    if not 10 * sensor.period <= seconds < math.inf:
        raise ValueError(
            f"seconds is {seconds}, expected at least {10 * sensor.period:g} for {sensor.source}"
        )
    with Meter(sensor, 0.0).measure() as measurement:
        time.sleep(seconds)
    return measurement.reading.total_joules / measurement.reading.seconds
