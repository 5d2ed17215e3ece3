"""Benchmarks under test know nothing of the runs whose outcomes are committed."""

from pathlib import Path

import pytest

from benchmarks import kept_runs


@pytest.fixture(autouse=True)
def no_gathered_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_runs, "GATHERED", tmp_path / "gathered")
