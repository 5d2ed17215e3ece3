"""Plan documents: all that is written is read back, old ones are, and hostile ones are refused unread."""

import json
import math
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flower_edge.gossip import GossipPlan, Phase, UnicastEnergy
from flower_edge.gossip._plan_json import (
    MAX_LINKS,
    MAX_PHASES,
    MAX_RECORDS,
    Decoded,
    check_choice,
    decode,
    digest_of,
    encode,
)
from flower_edge.gossip._strict_json import MAX_BRACKETS, MAX_BYTES, check_text, parse_object, read_text
from flower_edge.gossip.energy import BroadcastEnergy, EnergyModel
from flower_edge.gossip.transmissions import Transmissions

RING = [
    (np.array([[0, 1], [2, 3]]), np.array([0.5, 0.5])),
    (np.array([[0, 3], [1, 2]]), np.array([0.5, 0.5])),
]
ENERGY = BroadcastEnergy(
    [1.0, 2.0, 3.0, 4.0],
    0.5,
    [0.0, 0.25, 0.25, 0.25],
    Transmissions(np.array([[0, 1], [2, 3], [0, 3], [1, 2]]), np.array([1.0, 2.5, 10.0, 1.5])),
    [math.inf, 5.0, 5.0, 5.0],
)
CHOICE = {
    "method": "auto",
    "gap": 1e-7,
    "exact": True,
    "frontier": [{"name": "D = 4", "links": 8, "rho": None}],
}

VERSION_1 = (
    '{"format": "flower_edge.gossip_plan", "version": 1, "n": 4, "energy": {"model": "unicast", '
    '"compute": 1.0, "send": 0.5, "receive": 0.1}, "phases": [{"links": [[0, 1], [2, 3]], "weights": [0.1, '
    '0.5]}, {"links": [[0, 3], [1, 2]], "weights": [0.5, 0.3333333333333333]}], "digest": '
    '"4f593afa79a0a88c57e9a4283c74fb089de65687def96ae689f311953ae4a611"}'
)
VERSION_1_BARE = (
    '{"format": "flower_edge.gossip_plan", "version": 1, "n": 2, "energy": null, "phases": '
    '[{"links": [[0, 1]], "weights": [0.5]}], "digest": '
    '"92349357523d0b4082c5cc472beaa5e1e158f9ab6b7ac70fc5da6871a4674278"}'
)

SEEDS = st.integers(0, 2**32 - 1)
SCALARS = (
    st.none() | st.booleans() | st.integers() | st.text(max_size=20) | st.floats(allow_nan=False, width=32)
)
RECORDS = st.dictionaries(
    st.text(min_size=1, max_size=10), SCALARS.filter(lambda x: x not in (math.inf, -math.inf))
)
CHOICES = st.none() | st.dictionaries(
    st.text(min_size=1, max_size=10),
    SCALARS.filter(lambda x: x not in (math.inf, -math.inf)) | st.lists(RECORDS, max_size=3),
    max_size=4,
)


def written(document: dict[str, Any]) -> str:
    return json.dumps({**document, "digest": digest_of(document)})


def read(text: str) -> Decoded:
    return decode(parse_object(text, "plan"))


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 12), SEEDS, CHOICES)
def test_every_model_and_choice_reads_back(n: int, seed: int, choice: dict[str, Any] | None) -> None:
    rng = np.random.default_rng(seed)
    links = np.argwhere(np.triu(rng.random((n, n)) < 0.5, 1))
    one_or_all = [rng.random(n) if rng.random() < 0.5 else float(rng.random()) for _ in range(3)]
    energy: EnergyModel = (UnicastEnergy, BroadcastEnergy)[seed % 2](
        *one_or_all,
        Transmissions(links, rng.uniform(1, 9, len(links))) if rng.random() < 0.5 else None,
        [None, 7.5, [math.inf, *rng.uniform(1, 2, n - 1)]][seed % 3],
    )
    phases = [(links, rng.random(len(links))), (links[:1], rng.random(len(links[:1])))]

    back = read(written(encode(n, phases, energy, choice=choice)))

    back.check_digest()
    assert (back.n, back.energy, back.choice) == (n, energy, choice)
    assert type(back.energy) is type(energy)
    for ours, theirs in zip(phases, back.phases, strict=True):
        for expected, array in zip(ours, theirs, strict=True):
            assert (array.dtype, array.tobytes()) == (expected.dtype, expected.tobytes())


def test_files_of_version_1_still_load() -> None:
    plan = GossipPlan.from_json(VERSION_1)

    assert plan == GossipPlan(
        4,
        (
            Phase(np.array([[0, 1], [2, 3]]), np.array([0.1, 0.5])),
            Phase(np.array([[0, 3], [1, 2]]), np.array([0.5, 1 / 3])),
        ),
        UnicastEnergy(1.0, 0.5, 0.1),
    )
    assert GossipPlan.from_json(VERSION_1_BARE).energy is None
    assert json.loads(plan.to_json())["version"] == 2
    assert GossipPlan.from_json(plan.to_json()) == plan


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"send": 0.5', '"send": 0.6', "it was changed"),
        ('"weights": [0.5,', '"weights": [0.51,', "it was changed"),
        ('"unicast"', '"broadcast"', r"one of the models \['unicast'\]"),
        ('"compute": 1.0', '"compute": [1.0, 1.0, 1.0, 1.0]', r"received compute \[1.0"),
        ('"n": 4,', '"n": 4, "choice": null,', "received the fields"),
        ('"receive": 0.1', '"receive": 0.1, "battery": null', "received energy"),
    ],
)
def test_version_1_had_no_more(old: str, new: str, message: str) -> None:
    assert old in VERSION_1
    with pytest.raises(ValueError, match=message):
        GossipPlan.from_json(VERSION_1.replace(old, new))


def test_plans_carry_every_model(tmp_path: Path) -> None:
    plan = GossipPlan(4, tuple(Phase(*phase) for phase in RING), ENERGY)

    plan.to_json(tmp_path / "plan.json")
    back = GossipPlan.from_json(tmp_path / "plan.json")

    assert back == plan
    assert back.energy == ENERGY
    np.testing.assert_array_equal(back.energy_per_node(1), plan.energy_per_node(1))


def change(*path: Any, to: Any) -> str:
    document = encode(4, RING, ENERGY, choice=CHOICE)
    place: Any = document
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = to
    return json.dumps({**document, "digest": "0" * 64})


ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_anything_anywhere_is_refused_with_a_reason(data: st.DataObject) -> None:
    """Replaces one value of a document, at any depth: the plan is refused by a ValueError or is a plan."""
    document = encode(4, RING, ENERGY, choice=CHOICE)
    place: Any = document
    while True:
        key = data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
        if not isinstance(place[key], dict | list) or not place[key] or data.draw(st.booleans()):
            break
        place = place[key]
    place[key] = data.draw(ANYTHING)
    # Sealed as whoever means harm would.
    text = json.dumps({**document, "digest": digest_of(document)})

    try:
        plan = GossipPlan.from_json(text)
    except ValueError:
        return

    assert GossipPlan.from_json(plan.to_json()) == plan


EMPTY = {"links": [], "weights": []}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (change("phases", to=[EMPTY] * (MAX_PHASES + 1)), f"{MAX_PHASES + 1} phases, expected at most"),
        (change("phases", to=[EMPTY] * 100_000), "100000 phases, expected at most"),
        (
            change("phases", to=[{"links": [0] * 300_000, "weights": []}] * 2),
            f"600000 links in all phases together, expected at most {MAX_LINKS}",
        ),
        (change("phases", to=[{"links": [], "weights": [0.5] * (MAX_LINKS + 1)}]), "links in all phases"),
        (change("n", to=10**9), "n = 1000000000 nodes"),
        (change("n", to=2.0), "n = 2.0"),
        (
            change("energy", "compute", to=[1.0] * 3),
            "received 3 values for compute, expected one for each of 4",
        ),
        (change("energy", "compute", to=[1.0] * 10**6), "received 1000000 values for compute"),
        (change("energy", "compute", to=[1.0, 1.0, 1.0, None]), "compute holds None"),
        (change("energy", "compute", to=[1.0, 1.0, 1.0, -1.0]), r"compute\[3\] is -1.0 Wh"),
        (change("energy", "compute", to=[1.0, 1.0, 1.0, True]), "compute holds True"),
        (change("energy", "compute", to=[[1.0]] * 4), r"compute holds \[1.0\]"),
        (change("energy", "compute", to={}), "received compute {}"),
        (change("energy", "compute", to=10**400), "received compute 1000"),
        (change("energy", "battery", to=[1.0] * 5), "received 5 values for battery"),
        (change("energy", "battery", to=[None] * 4), "battery must be positive"),
        (change("energy", "battery", to="full"), "received battery 'full'"),
        (change("energy", "battery", to=0), "battery must be positive"),
        (change("energy", "model", to=["unicast"]), "one of the models"),
        (change("energy", "model", to="EnergyModel"), "one of the models"),
        (change("energy", "transmissions", to=[]), r"received transmissions \[\]"),
        (change("energy", "transmissions", "links", to={}), "expected lists"),
        (change("energy", "transmissions", "links", 0, to=[0, 4]), "transmissions name node 4"),
        (change("energy", "transmissions", "links", 0, to=[0, 10**30]), "each 0 to 4095"),
        (change("energy", "transmissions", "links", 0, to=[0]), r"received link \[0\]"),
        (change("energy", "transmissions", "factors", 0, to=0.5), "has 0.5 expected transmissions"),
        (change("energy", "transmissions", "factors", 0, to="1"), "transmissions hold '1'"),
        (change("energy", "transmissions", "factors", to=[1.0]), r"factors of shape \(1,\) for 4 links"),
        (change("energy", "transmissions", "more", to=1), "received transmissions"),
        (change("choice", to=[]), r"choice is \[\], expected an object"),
        (change("choice", "method", to={}), "choice.method is {}, expected a string"),
        (change("choice", "method", to="a" * 501), "choice.method has 501 characters"),
        (change("choice", "a" * 61, to=1), "expected a name of 1 to 60 characters"),
        (change("choice", "", to=1), "expected a name of 1 to 60 characters"),
        (change("choice", "gap", to=float("nan")), "NaN is no number"),
        (change("choice", "gap", to=10**400), "choice.gap is 1000"),
        (
            change("choice", to={str(key): 1 for key in range(33)}),
            "choice has 33 fields, expected at most 32",
        ),
        (change("choice", "frontier", to=[{}] * (MAX_RECORDS + 1)), "choice.frontier has 201 records"),
        (change("choice", "frontier", 0, to=[]), r"choice.frontier\[0\] is \[\], expected an object"),
        (change("choice", "frontier", 0, "rho", to=[1]), r"choice.frontier\[0\].rho is \[1\]"),
    ],
)
def test_hostile_documents(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        read(text)

    assert len(str(raised.value)) < 500


@pytest.mark.parametrize(("n", "phases"), [(4096, 1), (1000, 68), (256, 60), (256, MAX_PHASES), (64, 200)])
def test_the_cycles_that_schedules_make_are_read(n: int, phases: int) -> None:
    text = written(encode(n, [(np.empty((0, 2), np.int64), np.empty(0))] * phases, None))

    assert len(read(text).phases) == phases


@pytest.mark.parametrize(("n", "phases"), [(4096, 2), (1000, 69), (257, MAX_PHASES)])
def test_cycles_that_take_too_long_to_check(n: int, phases: int) -> None:
    with pytest.raises(ValueError, match=f"received {phases} phases of {n} nodes"):
        read(change("phases", to=[EMPTY] * phases).replace('"n": 4', f'"n": {n}'))


def test_a_plan_that_could_not_be_read_back_is_not_written(tmp_path: Path) -> None:
    """Boards would be the first to notice."""
    path, phases = tmp_path / "plan.json", (MAX_PHASES + 2) // 2 * [Phase(*phase) for phase in RING]

    with pytest.raises(ValueError, match=rf"could not be read back: received {len(phases)} phases, .* fewer"):
        GossipPlan(4, tuple(phases)).to_json(path)
    assert not path.exists()


def test_the_complete_graph_of_1024_nodes_is_not_too_large() -> None:
    links = np.argwhere(np.triu(np.ones((1024, 1024)), 1))
    weights = np.random.default_rng(0).random(len(links))

    check_text(json.dumps(encode(1024, [(links, weights)], None, links)), "plan")
    assert len(links) <= MAX_LINKS


def test_text_that_grows_when_parsed_is_refused_as_text() -> None:
    bomb = '{"a": [' + "[]," * (MAX_BYTES // 3 - 10) + "[]]}"
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=f"expected at most {MAX_BRACKETS}"):
            parse_object(bomb, "plan")
        assert tracemalloc.get_traced_memory()[1] < MAX_BYTES
    finally:
        tracemalloc.stop()


def test_a_device_without_end_is_refused() -> None:
    with pytest.raises(ValueError, match=r"/dev/zero has more than \d+ bytes"):
        read_text("/dev/zero")


def test_the_file_is_measured_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "claims.json"
    with path.open("wb") as file:
        file.truncate(2**30)

    with pytest.raises(ValueError, match=f"has {2**30} bytes, expected at most"):
        GossipPlan.from_json(path)


def test_what_could_not_be_read_back_is_not_written() -> None:
    class Metered(UnicastEnergy):
        pass

    with pytest.raises(ValueError, match="energy is a Metered, which has no JSON form"):
        encode(4, RING, Metered(1.0, 1.0, 1.0))
    for choice in ({"rho": math.inf}, {"rho": np.int64(1)}, {"rho": (1, 2)}, {1: 2}):
        with pytest.raises(ValueError, match="choice"):
            encode(4, RING, None, choice=choice)


def test_choices_are_copies() -> None:
    choice = {"name": "auto", "rho": np.float64(0.5), "frontier": [{"rho": 0.25}]}

    copy = check_choice(choice)
    choice["frontier"][0]["rho"] = 7

    assert copy == {"name": "auto", "rho": 0.5, "frontier": [{"rho": 0.25}]}
    assert type(copy["rho"]) is float


@pytest.mark.parametrize("path", [("energy", "send"), ("energy", "battery", 1), ("choice", "gap")])
def test_every_number_counts_for_the_digest(path: tuple) -> None:
    document = encode(4, RING, ENERGY, choice=CHOICE)
    digest = digest_of(document)
    read(json.dumps({**document, "digest": digest})).check_digest()
    place: Any = document
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] *= 2

    with pytest.raises(ValueError, match="it was changed"):
        read(json.dumps({**document, "digest": digest})).check_digest()
