"""What a round's training cost this board, where a sensor says so."""

from __future__ import annotations

from logging import WARNING, getLogger

from flwr.app import ConfigRecord, MetricRecord, RecordDict

from flower_edge.energy import Measurement, SensorError

log = getLogger("flwr").log


def add_to(report: MetricRecord, content: RecordDict, measurement: Measurement) -> None:
    """Add what was measured to a reply: the joules to its metrics, and where they come from as a record.

    Parameters
    ----------
    report : MetricRecord
        Gets ``energy_joules``.
    content : RecordDict
        Gets the record ``energy``.
    measurement : Measurement
        One that has ended. If its sensor failed, that is logged and nothing is added.
    """
    try:
        reading = measurement.reading
    except SensorError as error:
        log(WARNING, "The round's energy was not measured: %s", error)
        return
    report["energy_joules"] = reading.joules
    content["energy"] = ConfigRecord(
        {
            "source": reading.source,
            "resolution": reading.resolution,
            "idle-watts": reading.idle_watts,
            "total-joules": reading.total_joules,
        }
    )
