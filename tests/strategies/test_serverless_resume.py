"""Runs of sessions that are taken up again, from files that nobody trusts."""

import json
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from flwr.app import ArrayRecord, Message
from flwr.clientapp import ClientApp
from sessions import FAST, NODE_IDS, hosted, training_metrics
from threaded_grid import ThreadedGrid

from flower_edge.clients import gossip_mod
from flower_edge.gossip import GossipPlan
from flower_edge.strategies import CheckpointError, ServerlessGossip, TooFewNodesError


@pytest.fixture
def grid(toy_app: ClientApp, tmp_path: Path) -> ThreadedGrid:
    return ThreadedGrid(gossip_mod(toy_app), NODE_IDS, tmp_path)


class PowerCutError(Exception):
    """The ServerApp is gone."""


@pytest.mark.parametrize("when", ["before the replies arrive", "after the session"])
def test_a_run_goes_on_after_its_server_was_killed(
    when: str,
    plan: GossipPlan,
    grid: ThreadedGrid,
    initial: ArrayRecord,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In its second session, which the boards do to its end."""
    whole = ServerlessGossip(plan, rounds_per_session=3, settings=FAST).start(grid, initial, num_rounds=8)

    class Killed(ServerlessGossip):
        def aggregate_train(self, server_round: int, replies: object) -> object:
            if server_round == 2 and when == "before the replies arrive":
                raise PowerCutError
            return super().aggregate_train(server_round, replies)

        def aggregate_evaluate(self, server_round: int, replies: object) -> object:
            if server_round == 2:
                raise PowerCutError
            return super().aggregate_evaluate(server_round, replies)

    file = tmp_path / "run.json"
    arguments = {"rounds_per_session": 3, "settings": FAST, "resume": file}
    with pytest.raises(PowerCutError):
        Killed(plan, **arguments).start(grid, initial, num_rounds=8)
    before = len(grid.sent)
    waits: list[float] = []
    send = grid.send_and_receive
    monkeypatch.setattr(
        grid, "send_and_receive", lambda them, timeout: waits.append(timeout) or send(them, timeout=timeout)
    )
    resumed = ServerlessGossip(plan, export=6, connect_timeout=77.0, **arguments)
    result = resumed.start(grid, initial, num_rounds=8)

    assert waits[0] == 77.0, "as long as it takes until the boards are done with their session"
    assert training_metrics(result) == training_metrics(whole)
    assert result.evaluate_metrics_clientapp == whole.evaluate_metrics_clientapp
    expected = hosted(plan, grid.app, initial, 8)["weight"]
    np.testing.assert_allclose(result.arrays["weight"].numpy(), expected, rtol=1e-5)
    again = grid.sent[before:]
    assert not any(message.content.array_records for message in again), "models are on the boards' disks"
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_file()) == ["run.json", "run.json.model"]

    finished = ServerlessGossip(plan, **arguments).start(grid, initial, num_rounds=8)
    assert training_metrics(finished) == training_metrics(whole)
    assert finished.arrays == result.arrays


def test_a_session_in_which_all_nodes_fail_is_done_again(
    plan: GossipPlan, tmp_path: Path, toy_app: ClientApp, initial: ArrayRecord
) -> None:
    app, out_of_memory = ClientApp(), [True]
    app.evaluate()(lambda message, context: toy_app(message, context))

    @app.train()
    def train(message: Message, context: object) -> Message:
        if out_of_memory and message.content["config"]["server-round"] > 5:
            raise RuntimeError("out of memory")
        return toy_app(message, context)

    grid = ThreadedGrid(gossip_mod(app), NODE_IDS, tmp_path)
    settings = replace(FAST, connect_timeout=5)
    arguments = {"rounds_per_session": 5, "min_nodes": 4, "settings": settings, "resume": tmp_path / "run"}
    with pytest.raises(TooFewNodesError, match=r"session 2: of 6 nodes 6 failed, and 0 .* min_nodes is 4"):
        ServerlessGossip(plan, **arguments).start(grid, initial, num_rounds=10)

    out_of_memory.clear()
    result = ServerlessGossip(plan, export=6, **arguments).start(grid, initial, num_rounds=10)

    assert [metrics["nodes-failed"] for metrics in result.train_metrics_clientapp.values()] == [0] * 10
    expected = hosted(plan, grid.app, initial, 10)["weight"]
    np.testing.assert_allclose(result.arrays["weight"].numpy(), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "does not say where a run of sessions stands"),
        (b"[]", "does not say where a run of sessions stands"),
        (b'{"version": 2}', "another version, expected 1"),
        (b'{"version": 1, "plan": "x", "run": "a"}', "a run by another plan"),
        (b'{"version": 1, "plan": "PLAN", "run": "../a"}', "does not say where a run of sessions stands"),
        (b'{"version": 1, "plan": "PLAN", "run": "a", "reports": {"1": {"9": {}}}}', "expected a whole one"),
        (
            b'{"version": 1, "plan": "PLAN", "run": "a", "reports": {"1": {"2": {"round": 1, '
            b'"links-failed": NaN, "links-in-doubt": 0, "train-seconds": 1, "exchange-seconds": 1, '
            b'"bytes-sent": 1, "bytes-received": 1}}}}',
            "its 'links-failed' of round 1 is nan, expected 0 or more",
        ),
        (b'{"version": 1, "plan": "PLAN", "run": "a", "evaluations": {"x": {}}}', "does not say where a run"),
    ],
)
def test_a_resume_file_that_is_none(
    content: bytes, message: str, plan: GossipPlan, grid: ThreadedGrid, initial: ArrayRecord, tmp_path: Path
) -> None:
    file = tmp_path / "run.json"
    file.write_bytes(content.replace(b"PLAN", plan.digest().encode()))

    with pytest.raises(CheckpointError, match=message):
        ServerlessGossip(plan, resume=file).start(grid, initial)
    assert not grid.sent


def test_the_model_of_another_run_is_not_returned(
    plan: GossipPlan, grid: ThreadedGrid, initial: ArrayRecord, tmp_path: Path
) -> None:
    file = tmp_path / "run.json"
    arguments = {"settings": FAST, "resume": file}
    ServerlessGossip(plan, export=1, **arguments).start(grid, initial, num_rounds=1)
    file.unlink()
    ServerlessGossip(plan, **arguments).start(grid, initial, num_rounds=1)

    assert not ServerlessGossip(plan, **arguments).start(grid, initial, num_rounds=1).arrays


def rewrite(path: Path, change: Callable[[dict[str, bytes]], None]) -> None:
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    change(members)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def rewrite_meta(**changes: object) -> Callable[[dict[str, bytes]], None]:
    def change(members: dict[str, bytes]) -> None:
        members["meta.json"] = json.dumps(json.loads(members["meta.json"]) | changes).encode()

    return change


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-30]), "is not a whole model of flower_edge"),
        (lambda path: rewrite(path, rewrite_meta(version=2)), "has version 2, expected 1"),
        (lambda path: rewrite(path, rewrite_meta(layout=[["weight", [15], "float32"]])), "another model"),
        (
            lambda path: rewrite(path, lambda members: members.pop("arrays/weight.npy")),
            "is not a whole model",
        ),
        (
            lambda path: rewrite(path, lambda members: members.update({"arrays/weight.npy": bytes(2**28)})),
            r"arrays/weight\.npy claims 268435456 bytes",
        ),
    ],
    ids=["truncated", "version", "layout", "array missing", "zip bomb"],
)
def test_a_model_beside_the_resume_file_is_not_trusted(
    damage: Callable[[Path], None],
    message: str,
    plan: GossipPlan,
    grid: ThreadedGrid,
    initial: ArrayRecord,
    tmp_path: Path,
) -> None:
    strategy = ServerlessGossip(plan, export=1, settings=FAST, resume=tmp_path / "run.json")
    strategy.start(grid, initial, num_rounds=1)
    damage(tmp_path / "run.json.model")
    sent = len(grid.sent)

    with pytest.raises(CheckpointError, match=message):
        strategy.start(grid, initial, num_rounds=1)
    assert len(grid.sent) == sent


def test_a_resume_file_that_cannot_be_written_is_noticed_before_anything_is_sent(
    plan: GossipPlan, grid: ThreadedGrid, initial: ArrayRecord, tmp_path: Path
) -> None:
    with pytest.raises(OSError, match=r"cannot write .*nowhere/run\.json.*there is no folder"):
        ServerlessGossip(plan, resume=tmp_path / "nowhere" / "run.json").start(grid, initial)
    assert not grid.sent
