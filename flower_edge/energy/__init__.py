"""What work costs a board: joules read from a sensor, or counted operations times a published table.

`Meter` measures where the board has a sensor, and says that there is none where it has not; `EnergyModel`
models. Neither ever stands in for the other. numpy and torch are not needed.
"""

from flower_edge.energy.find import Found, find_sensors
from flower_edge.energy.meter import Measurement, Meter, Reading, measure_idle
from flower_edge.energy.model import HOROWITZ_45NM, Counts, EnergyModel, EnergyTable, Modelled
from flower_edge.energy.sensor import Sensor, SensorError

__all__ = [
    "HOROWITZ_45NM",
    "Counts",
    "EnergyModel",
    "EnergyTable",
    "Found",
    "Measurement",
    "Meter",
    "Modelled",
    "Reading",
    "Sensor",
    "SensorError",
    "find_sensors",
    "measure_idle",
]
