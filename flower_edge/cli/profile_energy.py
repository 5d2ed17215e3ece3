"""What a training step costs: measured where there is a sensor, counted, and modelled, side by side."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from flower_edge.cli.screen import printable
from flower_edge.energy import Counts, EnergyModel, Meter, SensorError, find_sensors, measure_idle

if TYPE_CHECKING:
    from flower_edge.training.profile import Profile

SECONDS = 2.0
"""Of idling, and of steps, at least; a sensor that looks rarely takes longer."""

PERIODS = 10


@dataclass(frozen=True)
class StepEnergy:
    """Joules of a step, or why they were not measured.

    Attributes
    ----------
    joules : float or None
        Above idle; the mean over many steps.
    note : str
        The sensor; without a figure, why there is none.
    """

    joules: float | None
    note: str


def measure_step(step: Callable[[], object]) -> StepEnergy:
    """Measure what a step takes, by this machine's best sensor.

    Parameters
    ----------
    step : callable
        Takes one step.
    """
    found = find_sensors()
    if not found.sensors:
        return StepEnergy(None, "; ".join(("no energy sensor", *found.obstacles)))
    sensor = found.sensors[0]
    seconds = max(SECONDS, PERIODS * sensor.period)
    steps = 0
    try:
        meter = Meter(sensor, measure_idle(sensor, seconds))
        step()
        with meter.measure() as measurement:
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                step()
                steps += 1
        reading = measurement.reading
    except SensorError as error:
        return StepEnergy(None, str(error))
    note = f"{sensor.source}, {steps} steps, idle {reading.idle_watts:.3g} W"
    return StepEnergy(reading.joules / steps, note)


def print_energy(console: Console, profile: "Profile", measured: StepEnergy) -> None:
    """Print one row: measured, counted and modelled, each in columns of its own."""
    modelled = EnergyModel().of(Counts(profile.macs, profile.traffic_bytes))
    table = Table(
        box=box.SIMPLE_HEAD, pad_edge=False, title="energy of a step", title_justify="left", title_style=""
    )
    headings = (
        "J\nmeasured",
        "MMAC\ncounted",
        "MB moved\ncounted",
        "J at least\nmodelled",
        "J at most\nmodelled",
    )
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_row(
        "\N{EN DASH}" if measured.joules is None else f"{measured.joules:.3g}",
        f"{profile.macs / 1e6:.4g}",
        f"{profile.traffic_bytes / 1e6:.4g}",
        f"{modelled.least:.3g}",
        f"{modelled.most:.3g}",
    )
    table.caption = Text(
        f"measured: {printable(measured.note)}.\n"
        f"modelled: counts times the figures of {modelled.table.name}, for arithmetic and main memory alone."
    )
    table.caption_justify = "left"
    console.print(table)
