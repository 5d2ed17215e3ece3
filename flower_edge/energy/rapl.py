"""RAPL: the energy counters of x86 processors, in /sys/class/powercap."""

import re
from dataclasses import dataclass
from pathlib import Path

from flower_edge.energy.sensor import Gauge, Sensor, number, text_of

# "intel-rapl-mmio:0" counts the same package once more; AMD's counters are called intel-rapl, too.
_ZONE = re.compile(r"intel-rapl:\d+(:\d+)?")


@dataclass(frozen=True)
class Zone:
    """One counter: its name, its file, and the µJ after which it starts again from zero."""

    name: str
    file: Path
    wraps_after: int


class Rapl(Sensor):
    """The packages of all sockets, and their memory where it has a counter of its own.

    Cores and graphics are parts of a package; ``psys`` is the whole platform, packages included. Neither is
    added. What the board draws beside the processor is not in these counters.

    Parameters
    ----------
    zones : list of Zone
    """

    # Processors bring their counters up to date about a thousand times a second.
    period = 1e-3

    def __init__(self, zones: list[Zone]) -> None:
        self.zones = zones
        self.source = f"RAPL ({', '.join(zone.name for zone in zones)})"

    def gauge(self) -> "Counters":
        """Return the sum of what the counters count from now on."""
        return Counters(self.zones)


class Counters(Gauge):
    """Sums counters that start again from zero; one look in each turn of a counter is enough."""

    def __init__(self, zones: list[Zone]) -> None:
        self._zones = zones
        self._last: list[int] | None = None
        self._microjoules = 0

    def look(self, now: float) -> None:
        """Add what was counted since the last look."""
        values = [number(zone.file) for zone in self._zones]
        if self._last is not None:
            for zone, value, before in zip(self._zones, values, self._last, strict=True):
                self._microjoules += (
                    value - before if value >= before else value - before + zone.wraps_after + 1
                )
        self._last = values

    @property
    def joules(self) -> float:
        """What was drawn between the first look and the last."""
        return self._microjoules / 1e6


def find(root: Path) -> Rapl | None:
    """Return the counters of this machine, None if it has none.

    Raises
    ------
    PermissionError
        If there are some that this user may not read.
    """
    zones = []
    for folder in sorted((root / "sys/class/powercap").glob("intel-rapl:*")):
        name = text_of(folder / "name")
        if not _ZONE.fullmatch(folder.name) or not (name.startswith("package-") or name == "dram"):
            continue
        if name == "dram":
            name = f"dram of {text_of(folder.parent / folder.name.rpartition(':')[0] / 'name')}"
        file = folder / "energy_uj"
        try:
            number(file)
        except PermissionError as error:
            raise PermissionError(
                f"RAPL is there, but {file} may be read by root alone (since kernel 5.10): run as root, or "
                f"let a group read it: chgrp GROUP {file} && chmod 440 {file}, after every boot"
            ) from error
        except OSError:
            continue
        zones.append(Zone(name, file, number(folder / "max_energy_range_uj")))
    return Rapl(zones) if zones else None
