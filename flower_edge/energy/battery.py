"""Batteries, in /sys/class/power_supply: while one discharges, it says what the board draws."""

from pathlib import Path

from flower_edge.energy.sensor import PowerSensor, number, text_of


class Battery(PowerSensor):
    """All batteries of the machine, which must discharge: else they do not say what the board draws.

    Parameters
    ----------
    folders : list of Path
        One for each battery.
    """

    # Fuel gauges take a new mean every few seconds.
    period = 1.0

    def __init__(self, folders: list[Path]) -> None:
        self._folders = folders
        self.source = f"battery ({', '.join(folder.name for folder in folders)})"

    def watts(self) -> float:
        """Read the power that leaves the batteries."""
        return sum(_watts(folder) for folder in self._folders)


def _watts(folder: Path) -> float:
    status = text_of(folder / "status")
    if status != "Discharging":
        raise OSError(
            f"the battery {folder.name} is {status or 'in an unknown state'!r}, expected 'Discharging': on "
            "mains it does not say what the board draws; unplug it to measure"
        )
    # Some drivers count what leaves as negative.
    if (folder / "power_now").exists():
        return abs(1e-6 * number(folder / "power_now"))
    return abs(1e-12 * number(folder / "voltage_now") * number(folder / "current_now"))


def find(root: Path) -> Battery | None:
    """Return the batteries that this machine runs on, None if it has none.

    Raises
    ------
    OSError
        If it has some, but they do not say what it draws.
    """
    folders = [
        folder
        for folder in sorted((root / "sys/class/power_supply").glob("*"))
        # Those of mice and keyboards have the scope "Device".
        if text_of(folder / "type") == "Battery" and text_of(folder / "scope") != "Device"
    ]
    if not folders:
        return None
    battery = Battery(folders)
    battery.watts()
    return battery
