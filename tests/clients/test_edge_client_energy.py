"""Measured joules in a ClientApp's replies, on recorded sensors."""

import logging
from pathlib import Path

import local_grid  # noqa: F401  (lets this process make messages)
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from torch import nn
from torch.nn.functional import cross_entropy

from flower_edge.clients import Elastic, edge_client_app
from flower_edge.energy import Meter
from flower_edge.training import Time

RAIL = "sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0"


def jetson(root: Path) -> Meter:
    folder = root / RAIL
    folder.mkdir(parents=True)
    (folder / "rail_name_0").write_text("POM_5V_IN\n")
    (folder / "in_power0_input").write_text("2500\n")
    meter = Meter.find(idle_watts=1.5, root=root)
    assert meter is not None
    return meter


def net() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 4), nn.ReLU(), nn.Linear(4, 3))


def train(app: ClientApp) -> RecordDict:
    content = RecordDict(
        {
            "arrays": ArrayRecord(net().state_dict()),
            "config": ConfigRecord({"server-round": 1, "lr": 0.05, "deadline": 60.0}),
        }
    )
    context = Context(1, 7, {"partition-id": 1}, RecordDict(), {"local-epochs": 1})
    reply = app(Message(content, dst_node_id=7, message_type="train"), context)
    assert not reply.has_error()
    return reply.content


def make_app(**arguments: object) -> ClientApp:
    batches = [(torch.randn(4, 3, 2, 2), torch.randint(3, (4,))) for _ in range(3)]
    return edge_client_app(net, lambda _: (batches, batches), cross_entropy, **arguments)


@pytest.mark.parametrize("elastic", [None, Elastic([Time(0.5)])])
def test_a_meter_s_joules_and_their_source_are_in_the_reply(tmp_path: Path, elastic: Elastic | None) -> None:
    content = train(make_app(meter=jetson(tmp_path), elastic=elastic))

    (metrics,) = content.metric_records.values()
    record = content.config_records["energy"]
    seconds = record["total-joules"] / 2.5
    assert seconds > 0
    assert metrics["energy_joules"] == pytest.approx((2.5 - 1.5) * seconds)
    assert record["source"] == "INA3221 (POM_5V_IN)"
    assert record["idle-watts"] == 1.5
    assert 0 < record["resolution"] <= 2.5 * 0.1


def test_without_a_meter_no_joules_are_reported() -> None:
    content = train(make_app(meter=None))

    (metrics,) = content.metric_records.values()
    assert "energy_joules" not in metrics
    assert "energy" not in content


def test_a_sensor_that_fails_costs_the_figure_but_not_the_round(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    meter = jetson(tmp_path)
    (tmp_path / RAIL / "in_power0_input").unlink()

    # Flower's logger keeps its records to itself.
    logging.getLogger("flwr").addHandler(caplog.handler)
    try:
        content = train(make_app(meter=meter))
    finally:
        logging.getLogger("flwr").removeHandler(caplog.handler)

    (metrics,) = content.metric_records.values()
    assert metrics["train_loss"] > 0
    assert "energy_joules" not in metrics
    assert "energy" not in content
    assert "The round's energy was not measured: INA3221 (POM_5V_IN) failed" in caplog.text


def test_anything_but_a_meter_is_refused() -> None:
    with pytest.raises(TypeError, match=r"meter is a str, expected a flower_edge.energy.Meter or None"):
        make_app(meter="rapl")
