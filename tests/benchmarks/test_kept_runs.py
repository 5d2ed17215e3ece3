"""Outcomes of runs that a cut-off must not lose."""

import json
from pathlib import Path

import pytest

from benchmarks import kept_runs
from benchmarks.kept_runs import checkpoint_digest, gather, keep, kept_at, say


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def test_what_decides_an_outcome_names_it() -> None:
    paths = {
        kept_at(benchmark, decides)
        for benchmark in ("one", "other")
        for decides in ([1, "a"], [2, "a"], [1, {"a": 0.5}])
    }

    assert len(paths) == 6
    assert kept_at("one", [1, "a"]) in paths


def test_an_outcome_is_there_whole_or_not_at_all() -> None:
    path = kept_at("one", [1])

    keep(path, {"accuracy": 0.5})
    with pytest.raises(TypeError):
        keep(path, {"accuracy": object()})

    assert json.loads(path.read_text()) == {"accuracy": 0.5}
    assert list(path.parent.iterdir()) == [path]


def test_gathered_outcomes_are_kept_on_another_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept_runs, "GATHERED", tmp_path / "runs")
    keep(kept_at("one", [1]), {"accuracy": 0.5})
    keep(kept_at("one", [2]), {"accuracy": 0.75})
    (kept_at("one", [1]).parent / "a-profile.json").write_text("{}")
    gathered = gather("one")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "elsewhere"))

    assert len(gathered.read_text().splitlines()) == 2
    assert [json.loads(kept_at("one", [run]).read_text())["accuracy"] for run in (1, 2)] == [0.5, 0.75]
    assert not kept_at("one", [3]).exists()


def test_another_checkpoint_has_another_digest() -> None:
    assert checkpoint_digest("resnet20") != checkpoint_digest("mobilenet_v2")


def test_progress_is_for_terminals(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    say("unseen")
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    say("seen")

    assert capsys.readouterr().err == "seen\n"
