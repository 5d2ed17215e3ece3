"""The resume file: whole or not there, and never trusted."""

import errno
import json
import resource
import signal
import zipfile
from pathlib import Path

import numpy as np
import pytest

from flower_edge.gossip import DPSGD, GossipPlan, full_graph_plan, load_graph
from flower_edge.strategies import CheckpointError
from flower_edge.strategies.checkpoint import Progress, load, save
from flower_edge.strategies.fleet import Fleet


@pytest.fixture
def fleet(plan: GossipPlan) -> Fleet:
    fleet = Fleet(plan, {"weight": np.zeros((3, 5), np.float32), "steps": np.int64(0)}, DPSGD)
    fleet.models[:] = np.random.default_rng(0).standard_normal(fleet.models.shape)
    fleet.carried[4]["steps"] = np.array(41)
    return fleet


@pytest.fixture
def progress() -> Progress:
    return Progress(
        server_round=3,
        traffic=np.arange(6) * 2**40,
        energy=np.linspace(0.1, 0.7, 6),
        bound={2**63 - 1: 0, 12: 5},
        history={"train_metrics_clientapp": {1: {"train_loss": 0.1, "per-class": [0.5, 1 / 3]}, 3: {"n": 4}}},
        importance={"weight": 1 / 3},
    )


def fresh(plan: GossipPlan) -> Fleet:
    return Fleet(plan, {"weight": np.zeros((3, 5), np.float32), "steps": np.int64(0)}, DPSGD)


def test_round_trip_is_exact(tmp_path: Path, fleet: Fleet, progress: Progress) -> None:
    path, other = tmp_path / "run", fresh(fleet.plan)
    save(path, fleet, progress)

    loaded = load(path, other)

    np.testing.assert_array_equal(other.models, fleet.models)
    assert other.carried == fleet.carried
    assert (loaded.server_round, loaded.bound, loaded.history) == (3, progress.bound, progress.history)
    np.testing.assert_array_equal(loaded.traffic, progress.traffic)
    np.testing.assert_array_equal(loaded.energy, progress.energy)
    assert loaded.importance == progress.importance
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_restored_buffers_can_be_written(tmp_path: Path, fleet: Fleet, progress: Progress) -> None:
    save(tmp_path / "run", fleet, progress)
    other = fresh(fleet.plan)
    load(tmp_path / "run", other)

    other.carried[0]["steps"] += 1
    other.models += 1


def test_another_plan_is_refused(tmp_path: Path, fleet: Fleet, progress: Progress) -> None:
    save(tmp_path / "run", fleet, progress)

    with pytest.raises(CheckpointError, match="under another plan"):
        load(tmp_path / "run", fresh(full_graph_plan(load_graph("ring:6"))))


def test_another_model_is_refused(tmp_path: Path, fleet: Fleet, progress: Progress) -> None:
    save(tmp_path / "run", fleet, progress)
    other = Fleet(fleet.plan, {"weight": np.zeros(15, np.float32)}, DPSGD)

    with pytest.raises(CheckpointError, match="another model"):
        load(tmp_path / "run", other)


@pytest.mark.parametrize("keep", [0, 1, 100, 0.5, 0.99])
def test_a_truncated_file_is_refused(tmp_path: Path, fleet: Fleet, progress: Progress, keep: float) -> None:
    path, other = tmp_path / "run", fresh(fleet.plan)
    save(path, fleet, progress)
    content = path.read_bytes()
    path.write_bytes(content[: keep if isinstance(keep, int) else int(keep * len(content))])

    with pytest.raises(CheckpointError, match="is not a whole checkpoint"):
        load(path, other)
    assert not other.models.any()


def test_every_flipped_byte_is_refused_or_harmless(tmp_path: Path, fleet: Fleet, progress: Progress) -> None:
    path = tmp_path / "run"
    save(path, fleet, progress)
    content = bytearray(path.read_bytes())
    refused = 0
    for position in range(0, len(content), 37):
        damaged = content.copy()
        damaged[position] ^= 0x55
        path.write_bytes(damaged)
        other = fresh(fleet.plan)
        try:
            load(path, other)
        except CheckpointError:
            refused += 1
            assert not other.models.any()
        else:  # zip's own padding: what was read is what was written
            np.testing.assert_array_equal(other.models, fleet.models)
    assert refused > 20


def rewrite(path: Path, changes: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in {**members, **changes}.items():
            archive.writestr(name, content)


def test_hostile_members_are_refused_before_memory_is_taken(
    tmp_path: Path, fleet: Fleet, progress: Progress
) -> None:
    path = tmp_path / "run"
    save(path, fleet, progress)
    rewrite(path, {"models.npy": bytes(2**28)})  # a zip bomb: 256 MB of zeros in 256 KB

    with pytest.raises(CheckpointError, match=r"models\.npy claims 268435456 bytes"):
        load(path, fresh(fleet.plan))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 99}, "version 99, expected 1"),
        ({"traffic": [1, 2]}, r"shape \(2,\), expected \(6,\)"),
        ({"energy": "much"}, "not a whole checkpoint"),
        ({"round": None}, "not a whole checkpoint"),
        ({"bound": [3]}, "not a whole checkpoint"),
        ({"importance": {"bias": 1.0}}, "importance of 'bias' was given"),
        ({"importance": {"weight": float("nan")}}, "importance of 'weight' is nan"),
        ({"importance": [1.0]}, "not a whole checkpoint"),
    ],
)
def test_hostile_metadata_is_refused(
    tmp_path: Path, fleet: Fleet, progress: Progress, change: dict, message: str
) -> None:
    path = tmp_path / "run"
    save(path, fleet, progress)
    with zipfile.ZipFile(path) as archive:
        meta = json.loads(archive.read("meta.json"))
    rewrite(path, {"meta.json": json.dumps({**meta, **change}).encode()})

    with pytest.raises(CheckpointError, match=message):
        load(path, fresh(fleet.plan))


def test_a_file_of_before_importance_was_kept_is_read(
    tmp_path: Path, fleet: Fleet, progress: Progress
) -> None:
    path = tmp_path / "run"
    save(path, fleet, progress)
    with zipfile.ZipFile(path) as archive:
        meta = json.loads(archive.read("meta.json"))
    del meta["importance"]
    rewrite(path, {"meta.json": json.dumps(meta).encode()})

    loaded = load(path, fresh(fleet.plan))

    assert (loaded.server_round, loaded.importance) == (3, {})


def test_a_full_disk_keeps_the_checkpoint_before(tmp_path: Path, fleet: Fleet, progress: Progress) -> None:
    """The kernel itself refuses to write on: a file size limit, as a full disk would."""
    path = tmp_path / "run"
    save(path, fleet, progress)
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limits[1]))
    try:
        with pytest.raises(OSError, match="the one before is kept") as raised:
            save(path, fleet, progress)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)

    assert raised.value.errno == errno.EFBIG
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_a_missing_folder_is_named(tmp_path: Path, fleet: Fleet, progress: Progress) -> None:
    with pytest.raises(OSError, match="No such file") as raised:
        save(tmp_path / "nowhere" / "run", fleet, progress)

    assert str(tmp_path / "nowhere") in str(raised.value)
    assert "is kept" not in str(raised.value), "there is none"
