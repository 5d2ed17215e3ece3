"""Which energy sensors a machine has."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from flower_edge.energy import battery, ina3221, pmic, rapl
from flower_edge.energy.sensor import Sensor

# What covers the whole board comes first; a battery is slow, and covers more than the board.
_KINDS: tuple[Callable[[Path], Sensor | None], ...] = (ina3221.find, pmic.find, rapl.find, battery.find)


@dataclass(frozen=True)
class Found:
    """The energy sensors of a machine.

    Attributes
    ----------
    sensors : tuple of Sensor
        Those that can be read, the best first.
    obstacles : tuple of str
        Why others cannot be read that are there, and what to do about it.
    """

    sensors: tuple[Sensor, ...]
    obstacles: tuple[str, ...]


def find_sensors(root: str | Path = "/") -> Found:
    """Look for energy sensors: INA3221 (Jetson), PMIC (Raspberry Pi 5), RAPL (x86), batteries.

    Parameters
    ----------
    root : str or Path, default "/"
        Where ``sys`` and ``usr`` are looked for: another root has a recorded layout in it.

    Returns
    -------
    Found
        Without sensors where the machine has none.
    """
    sensors, obstacles = [], []
    for find in _KINDS:
        try:
            sensor = find(Path(root))
        except OSError as error:
            obstacles.append(str(error))
        else:
            if sensor is not None:
                sensors.append(sensor)
    return Found(tuple(sensors), tuple(obstacles))
