"""INA3221: the power monitors on Jetson boards, by the kernel's hwmon driver or NVIDIA's older iio driver."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from flower_edge.energy.sensor import PowerSensor, number, text_of

# Rails that everything else hangs on: Orin Nano and NX, TX2; Nano and TX1.
_WHOLE_BOARD = ("VDD_IN", "POM_5V_IN")
# On AGX Orin the former hangs on the latter, which has a monitor of its own.
_PART, _OF = "VDDQ_VDD2_1V8AO", "VIN_SYS_5V0"


@dataclass(frozen=True)
class Rail:
    """One monitored rail: its name, and how to read its watts."""

    name: str
    watts: Callable[[], float]


class Ina3221(PowerSensor):
    """The rail that feeds the whole board where it has a monitor, else the sum of all rails.

    Parameters
    ----------
    rails : list of Rail
    """

    period = 0.1

    def __init__(self, rails: list[Rail]) -> None:
        names = {rail.name for rail in rails}
        whole = [rail for rail in rails if rail.name in _WHOLE_BOARD]
        self.rails = whole[:1] or [rail for rail in rails if rail.name != _PART or _OF not in names]
        self.source = f"INA3221 ({' + '.join(rail.name for rail in self.rails)})"

    def watts(self) -> float:
        """Read the power of the rails."""
        return sum(rail.watts() for rail in self.rails)


def find(root: Path) -> Ina3221 | None:
    """Return the monitors of this board, None if it has none.

    Raises
    ------
    PermissionError
        If there are some that this user may not read.
    """
    rails = _hwmon(root) or _iio(root)
    found = []
    for rail in rails:
        try:
            rail.watts()
        except PermissionError as error:
            raise PermissionError(f"INA3221 is there, but this user may not read it: {error}") from error
        except OSError:
            # A channel that is switched off.
            continue
        found.append(rail)
    return Ina3221(found) if found else None


def _hwmon(root: Path) -> list[Rail]:
    rails = []
    for monitor in sorted((root / "sys/class/hwmon").glob("hwmon*")):
        if text_of(monitor / "name") != "ina3221":
            continue
        # A chip has three channels; the inputs beyond are voltages of shunts, and their sum.
        for channel in (1, 2, 3):
            name = text_of(monitor / f"in{channel}_label")
            if name and name != "NC":
                rails.append(Rail(name, _volts_times_amperes(monitor, channel)))
    return rails


def _volts_times_amperes(monitor: Path, channel: int) -> Callable[[], float]:
    millivolts, milliamperes = monitor / f"in{channel}_input", monitor / f"curr{channel}_input"
    return lambda: 1e-6 * number(millivolts) * number(milliamperes)


def _iio(root: Path) -> list[Rail]:
    rails = []
    for file in sorted((root / "sys/bus/i2c/drivers/ina3221x").glob("*/iio:device*/rail_name_*")):
        name = text_of(file)
        if name and name != "NC":
            channel = file.name.removeprefix("rail_name_")
            rails.append(Rail(name, _milliwatts(file.with_name(f"in_power{channel}_input"))))
    return rails


def _milliwatts(file: Path) -> Callable[[], float]:
    return lambda: 1e-3 * number(file)
