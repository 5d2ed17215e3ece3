"""``flower-edge energy``: the idle power of this board, and what a command takes above it."""

import subprocess
from typing import Annotated

import typer
from typer import Argument, Option

from flower_edge.cli.screen import output, say
from flower_edge.energy import Meter, Sensor, find_sensors, measure_idle


def energy(
    command: Annotated[
        list[str] | None,
        Argument(
            metavar="[-- COMMAND…]", help="What to measure; without it, idle power.", show_default=False
        ),
    ] = None,
    seconds: Annotated[float, Option(help="How long idle power is measured.")] = 10.0,
    idle_watts: Annotated[
        float | None,
        Option(
            metavar="W", help="Idle power, if it is known; else it is measured first.", show_default=False
        ),
    ] = None,
) -> None:
    """Measure idle power, or the energy of a command, by this board's sensor.

    INA3221 (Jetson), the power chip of a Raspberry Pi 5, RAPL (x86) and batteries are known. A sensor sees
    all that runs on the board: let nothing else run.

    [bold]Example[/bold]

      flower-edge energy --idle-watts 2.7 -- python train.py
    """
    sensor, console = _sensor(), output()
    if idle_watts is None:
        idle_watts = measure_idle(sensor, seconds)
        say(console, f"idle: {idle_watts:.4g} W (measured: {sensor.source}, {seconds:g} s)")
    if not command:
        return
    with Meter(sensor, idle_watts).measure() as measurement:
        done = subprocess.run(command, check=False)  # noqa: S603 - the user's own
    say(console, str(measurement.reading))
    raise typer.Exit(done.returncode)


def _sensor() -> Sensor:
    found = find_sensors()
    if found.sensors:
        return found.sensors[0]
    raise OSError("; ".join(("no energy sensor: nothing was measured", *found.obstacles)))
