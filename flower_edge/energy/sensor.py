"""What all energy sensors have in common."""

from abc import ABC, abstractmethod
from pathlib import Path


class SensorError(OSError):
    """A sensor failed in a measurement."""


class Sensor(ABC):
    """A sensor that says what a board, or a part of it, draws.

    Attributes
    ----------
    source : str
        The interface and what it covers, for people.
    period : float
        Seconds between two looks at the power that are worth taking.
    """

    source: str
    period: float

    @abstractmethod
    def gauge(self) -> "Gauge":
        """Return something that adds up joules from now on."""


class Gauge(ABC):
    """Adds up the joules of one measurement."""

    @abstractmethod
    def look(self, now: float) -> None:
        """Read the sensor; `now` is the time in seconds.

        Raises
        ------
        OSError
            If the sensor cannot be read, or no longer says what the board draws.
        """

    @property
    @abstractmethod
    def joules(self) -> float:
        """What was drawn between the first look and the last."""


class PowerSensor(Sensor):
    """A sensor that says how many watts flow just now; its joules are the area under samples of them."""

    @abstractmethod
    def watts(self) -> float:
        """Read the power.

        Raises
        ------
        OSError
            If it cannot be read, or does not say what the board draws.
        """

    def gauge(self) -> "Area":
        """Return the area under the power from now on."""
        return Area(self)


class Area(Gauge):
    """The area under samples of power, by the trapezoidal rule."""

    def __init__(self, sensor: PowerSensor) -> None:
        self._sensor = sensor
        self._last: tuple[float, float] | None = None
        self._joules = 0.0

    def look(self, now: float) -> None:
        """Add the trapezoid since the last look."""
        watts = self._sensor.watts()
        if self._last is not None:
            before, watts_before = self._last
            self._joules += (now - before) * (watts + watts_before) / 2
        self._last = (now, watts)

    @property
    def joules(self) -> float:
        """What was drawn between the first look and the last."""
        return self._joules


def number(path: Path) -> int:
    """Read the number that a file of sysfs holds.

    Raises
    ------
    OSError
        If there is none.
    """
    text = path.read_text(errors="replace").strip()
    try:
        return int(text)
    except ValueError:
        raise OSError(f"{path} says {text!r:.60}, expected a number") from None


def text_of(path: Path) -> str:
    """Read what a file of sysfs says, "" if it is not there."""
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""
