"""HostedGossip whose messages between nodes are compressed."""

import json
import zipfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, Message
from flwr.clientapp import ClientApp
from local_grid import LocalGrid
from records import to_numpy

from flower_edge.gossip import (
    DPSGD,
    ChocoSGD,
    CompressedMixer,
    Compressor,
    DeepSqueeze,
    GossipPlan,
    Int4,
    Int8,
    LinkChoco,
    PlainQuantised,
    SignNorm,
    TopK,
    UnicastEnergy,
    cyclic_matchings,
)
from flower_edge.strategies import CheckpointError, HostedGossip
from flower_edge.strategies.checkpoint import Progress, load, save
from flower_edge.strategies.fleet import Fleet

NODE_IDS = [70, 10, 60, 20, 50, 30]
ARRAYS = {"weight": np.zeros((6, 40), np.float32), "bias": np.ones(5, np.float32), "steps": np.int64(0)}
MIXERS = [ChocoSGD, LinkChoco, DeepSqueeze, PlainQuantised]

every_mixer = pytest.mark.parametrize("mixer", MIXERS)


def fleet_of(plan: GossipPlan, mixer: type[CompressedMixer], compressor: Compressor = Int8()) -> Fleet:  # noqa: B008
    return Fleet(plan, ARRAYS, mixer, compressor)


def train(fleet: Fleet, server_round: int) -> None:
    rng = np.random.default_rng(server_round)
    fleet.models += rng.normal(0, 0.1, fleet.models.shape).astype(np.float32)


@every_mixer
@pytest.mark.parametrize("compressor", [Int8(), Int4(rounding="stochastic"), TopK(0.1)], ids=lambda c: c.name)
def test_a_hosted_gossip_is_what_the_nodes_would_do_themselves(
    plan: GossipPlan, mixer: type[CompressedMixer], compressor: Compressor
) -> None:
    """Nodes that know their own row, their own model and what arrives end with the models of the fleet."""
    fleet = fleet_of(plan, mixer, compressor)
    start = fleet.models[0].copy()
    codec = compressor.codec(fleet.layout)
    boards = [mixer(node, plan, codec, start=start.copy()) for node in range(plan.n)]
    models = [start.copy() for _ in range(plan.n)]
    absent = {3: {1}, 4: {1, 2}, 6: {5}}
    for t in range(1, 10):
        live = sorted(set(range(plan.n)) - absent.get(t, set()))
        train(fleet, t)
        rng = np.random.default_rng(t)
        noise = rng.normal(0, 0.1, fleet.models.shape).astype(np.float32)
        models = [model + own for model, own in zip(models, noise, strict=True)]
        wire: dict[tuple[int, int], bytes] = {}
        for node in live:
            neighbours = [j for j in plan.neighbours(node, t) if j in live]
            for j, message in boards[node].outgoing(models[node], neighbours).items():
                wire[node, j] = bytes(message)
        models = [
            board.mix(models[i], plan.row(i, t), {j: wire[j, i] for j, to in wire if to == i})
            for i, board in enumerate(boards)
        ]

        fleet.mix(t, live)

        sent = [sum(len(message) for (sender, _), message in wire.items() if sender == i) for i in range(6)]
        np.testing.assert_array_equal(fleet.sent, sent)
        assert fleet.sent.sum() == fleet.received.sum()
    np.testing.assert_array_equal(fleet.models, np.stack(models))


@every_mixer
def test_small_models_that_agree_stay_as_they_are(plan: GossipPlan, mixer: type[CompressedMixer]) -> None:
    fleet = fleet_of(plan, mixer)
    before = fleet.models.copy()

    fleet.mix(1, range(plan.n))

    np.testing.assert_allclose(fleet.models, before, atol=1e-6)


def test_bytes_energy_and_metrics(plan: GossipPlan, toy_app: ClientApp, initial: ArrayRecord) -> None:
    """Six nodes of three links each: what the codec makes of 15 numbers, three times."""
    result = HostedGossip(plan, compressor=Int8()).start(LocalGrid(toy_app, NODE_IDS), initial, num_rounds=3)

    fleet = Fleet(plan, {name: array.numpy() for name, array in initial.items()}, ChocoSGD, Int8())
    (size,) = {
        len(message) for message in fleet.mixers[0].outgoing(fleet.models[0], plan.neighbours(0, 1)).values()
    }
    metrics = result.train_metrics_clientapp[3]
    assert metrics["sent-bytes-max"] == 3 * size
    assert metrics["sent-bytes-mean"] == pytest.approx(plan.links_per_node(1).mean() * size)
    assert metrics["busiest-node-bytes"] == 3 * 2 * 3 * size
    assert metrics["busiest-node-energy-wh"] == pytest.approx(3 * (1.0 + 3 * 0.75 * size / 60))


def test_compression_changes_little_of_what_is_learned(
    plan: GossipPlan, toy_app: ClientApp, initial: ArrayRecord
) -> None:
    plain, compressed = (
        HostedGossip(plan, compressor=compressor).start(LocalGrid(toy_app, NODE_IDS), initial, num_rounds=8)
        for compressor in (None, Int8())
    )

    for name, array in to_numpy(plain.arrays).items():
        np.testing.assert_allclose(to_numpy(compressed.arrays)[name], array, rtol=1e-4)
    spreads = [run.train_metrics_clientapp[8]["consensus-distance"] for run in (plain, compressed)]
    assert spreads[1] == pytest.approx(spreads[0], rel=0.05)


def test_arrays_that_a_reply_lacks_are_mixed_as_they_were_sent(
    plan: GossipPlan, toy_app: ClientApp, initial: ArrayRecord
) -> None:
    """The counter of steps is left out by one node, in every round; its weights are mixed all the same."""

    def leave_out(partition: int, message: Message, reply: Message) -> Message:
        if partition == 2 and message.metadata.message_type == "train":
            arrays = reply.content["arrays"]
            reply.content["arrays"] = ArrayRecord({"weight": arrays["weight"]})
        return reply

    whole, partial_ = (
        HostedGossip(plan, compressor=Int4(), partial_updates=fault is not None).start(
            LocalGrid(toy_app, NODE_IDS, fault=fault), initial, num_rounds=4
        )
        for fault in (None, leave_out)
    )

    np.testing.assert_array_equal(partial_.arrays["weight"].numpy(), whole.arrays["weight"].numpy())
    assert partial_.train_metrics_clientapp[4]["replies-rejected"] == 0


def test_the_plan_says_which_algorithm(plan: GossipPlan) -> None:
    matchings = GossipPlan(6, cyclic_matchings(plan.phase(0).links, 6))

    assert HostedGossip(plan).mixer is DPSGD
    assert HostedGossip(plan, compressor=Int8()).mixer is ChocoSGD
    assert HostedGossip(matchings, compressor=Int8()).mixer is LinkChoco
    assert HostedGossip(matchings, mixer=DeepSqueeze, compressor=SignNorm()).mixer is DeepSqueeze
    gamma = partial(ChocoSGD, gamma=0.25)
    assert Fleet(plan, ARRAYS, gamma, Int8()).mixers[3].gamma == 0.25


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mixer": ChocoSGD}, "makes no mixer from its index alone .*; give a compressor, too"),
        ({"mixer": DPSGD, "compressor": Int8()}, "from its index, plan, codec and start .* use ChocoSGD"),
        ({"mix_untrained": False, "compressor": Int8()}, "ChocoSGD mixes models as a whole"),
        ({"mixer": partial(ChocoSGD, gamma=-1.0), "compressor": Int8()}, "gamma is -1.0"),
    ],
)
def test_what_does_not_go_together_is_refused(plan: GossipPlan, arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HostedGossip(plan, **arguments)


def test_weights_that_change_are_refused_for_choco(plan: GossipPlan) -> None:
    matchings = GossipPlan(6, cyclic_matchings(plan.phase(0).links, 6), UnicastEnergy(1.0, 1.0, 1.0))

    with pytest.raises(ValueError, match=r"phases, and ChocoSGD remembers a sum .* use LinkChoco"):
        HostedGossip(matchings, mixer=ChocoSGD, compressor=Int8())


# ---------------------------------------------------------------- the resume file


def started(plan: GossipPlan, mixer: type[CompressedMixer], rounds: int = 4) -> Fleet:
    fleet = fleet_of(plan, mixer)
    for t in range(1, rounds + 1):
        train(fleet, t)
        # One node is late in the last round, so that something is owed.
        fleet.mix(t, range(plan.n - (t == rounds)))
    return fleet


@every_mixer
def test_memories_are_kept_to_the_bit(tmp_path: Path, plan: GossipPlan, mixer: type[CompressedMixer]) -> None:
    fleet, other = started(plan, mixer), fleet_of(plan, mixer)
    save(tmp_path / "run", fleet, Progress.start(plan.n))

    load(tmp_path / "run", other)

    for t in range(5, 9):
        for each in (fleet, other):
            train(each, t)
            each.mix(t, range(plan.n))
    np.testing.assert_array_equal(other.models, fleet.models)


def test_a_run_resumes_as_if_it_had_not_stopped(
    tmp_path: Path, plan: GossipPlan, toy_app: ClientApp, initial: ArrayRecord
) -> None:
    def gossip(resume: Path | None) -> HostedGossip:
        return HostedGossip(plan, compressor=Int4(rounding="stochastic"), resume=resume)

    whole = gossip(None).start(LocalGrid(toy_app, NODE_IDS), initial, num_rounds=6)
    gossip(tmp_path / "run").start(LocalGrid(toy_app, NODE_IDS), initial, num_rounds=3)
    resumed = gossip(tmp_path / "run").start(LocalGrid(toy_app, NODE_IDS), initial, num_rounds=6)

    for name, array in to_numpy(whole.arrays).items():
        np.testing.assert_array_equal(to_numpy(resumed.arrays)[name], array)


@pytest.mark.parametrize("other", [(DPSGD, None), (DeepSqueeze, Int8()), (ChocoSGD, Int4())])
def test_a_file_of_another_mixer_or_codec_is_refused(
    tmp_path: Path, plan: GossipPlan, other: tuple[Any, Any]
) -> None:
    save(tmp_path / "run", started(plan, ChocoSGD), Progress.start(plan.n))

    with pytest.raises(CheckpointError, match="written with mixer 'ChocoSGD, int8/channel', expected '"):
        load(tmp_path / "run", Fleet(plan, ARRAYS, *other))


def rewrite(path: Path, change: dict[str, Any], members: dict[str, bytes] | None = None) -> None:
    with zipfile.ZipFile(path) as archive:
        content = {name: archive.read(name) for name in archive.namelist()} | (members or {})
    content["meta.json"] = json.dumps(json.loads(content["meta.json"]) | change).encode()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in content.items():
            archive.writestr(name, data)


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        (
            [["public", [2**40], "float32"]],
            "claims to hold 'memory/0/public' .*expected vectors of the model",
        ),
        ([["links", [2**30, 3], "int64"]], "claims to hold 'memory/0/links'"),
        ([["public", [245], "object"]], "claims to hold 'memory/0/public'"),
        ([["public", [245], "float32"]], "received the memories"),
        ([["../../etc", [245], "float32"]], "not a whole checkpoint"),
        ([[3]], "not a whole checkpoint"),
    ],
)
def test_hostile_memories_are_refused(tmp_path: Path, plan: GossipPlan, specs: list, message: str) -> None:
    path, fleet = tmp_path / "run", started(plan, ChocoSGD)
    save(path, fleet, Progress.start(plan.n))
    rewrite(path, {"memories": [specs] * plan.n})
    other = fleet_of(plan, ChocoSGD)
    before, memory = other.models.copy(), other.mixers[0].state()["pull"].copy()

    with pytest.raises(CheckpointError, match=message):
        load(path, other)

    np.testing.assert_array_equal(other.models, before)
    np.testing.assert_array_equal(other.mixers[0].state()["pull"], memory)


def test_a_file_of_before_there_were_memories_is_read(tmp_path: Path, plan: GossipPlan) -> None:
    path, fleet = tmp_path / "run", Fleet(plan, ARRAYS, DPSGD)
    train(fleet, 1)
    save(path, fleet, Progress.start(plan.n))
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    meta = json.loads(members["meta.json"])
    del meta["mixer"], meta["memories"]
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in {**members, "meta.json": json.dumps(meta).encode()}.items():
            archive.writestr(name, data)
    other = Fleet(plan, ARRAYS, DPSGD)

    load(path, other)

    np.testing.assert_array_equal(other.models, fleet.models)
    with pytest.raises(CheckpointError, match="with mixer 'DPSGD, fp32', expected 'ChocoSGD"):
        load(path, fleet_of(plan, ChocoSGD))
