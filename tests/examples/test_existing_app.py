"""An app written for FedAvg gossips after five changed lines, all in its server_app.py."""

import difflib
import importlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from local_grid import LocalGrid

ROOT = Path(__file__).parents[2]
APP = ROOT / "examples" / "existing_app"


def changed_lines() -> list[str]:
    before, after = (
        (APP / "existing_app" / name).read_text().splitlines()
        for name in ("server_app_fedavg.py", "server_app.py")
    )
    diff = difflib.unified_diff(before, after, lineterm="", n=0)
    return [line for line in diff if line[:1] in "+-" and line[:3] not in ("+++", "---")]


def test_five_lines_change_and_the_readme_shows_them() -> None:
    readme = (APP / "README.md").read_text()

    assert 0 < len(changed_lines()) <= 5
    for line in changed_lines():
        assert line in readme


@pytest.fixture
def apps(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, ModuleType]]:
    monkeypatch.syspath_prepend(str(APP))
    names = ("client_app", "server_app", "server_app_fedavg")
    yield {name: importlib.import_module(f"existing_app.{name}") for name in names}
    for module in [name for name in sys.modules if name.partition(".")[0] == "existing_app"]:
        del sys.modules[module]


@pytest.mark.parametrize("server", ["server_app_fedavg", "server_app"])
def test_it_learns_before_and_after(
    server: str,
    apps: dict[str, ModuleType],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from flwr.app import Context, RecordDict

    monkeypatch.chdir(tmp_path)
    run_config = {
        "num-server-rounds": 4,
        "fraction-evaluate": 0.5,
        "local-epochs": 1,
        "learning-rate": 0.05,
        "batch-size": 32,
    }
    grid = LocalGrid(apps["client_app"].app, list(range(100, 110)), run_config)
    accuracies = []
    evaluate = apps[server].global_evaluate
    monkeypatch.setattr(
        apps[server], "global_evaluate", lambda r, a: accuracies.append(m := evaluate(r, a)) or m
    )

    apps[server].app(grid, Context(1, 0, {}, RecordDict(), run_config))

    assert accuracies[0]["accuracy"] < 0.3
    assert accuracies[-1]["accuracy"] > 0.6
    assert (tmp_path / "final_model.pt").exists()


def test_ten_more_lines_take_the_models_from_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    diff = (APP / "serverless.diff").read_text()
    changed = [line for line in diff.splitlines() if line[:1] in "+-" and line[:3] not in ("+++", "---")]
    readme = (APP / "README.md").read_text()
    assert 0 < len(changed) <= 15
    assert all(line in readme for line in changed)
    shutil.copytree(APP / "existing_app", tmp_path / "existing_app")
    subprocess.run(["patch", "-p1"], input=diff, text=True, cwd=tmp_path, check=True, capture_output=True)
    monkeypatch.chdir(tmp_path)
    paths = [tmp_path, ROOT, ROOT / "tests", ROOT / "tests" / "strategies"]

    done = subprocess.run(
        [sys.executable, "-c", RUN, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, paths))},
    )

    assert done.returncode == 0, done.stderr[-4000:]
    assert float(done.stdout.split()[-1]) > 0.6
    assert (tmp_path / "final_model.pt").exists()


RUN = """
import sys
from pathlib import Path
import torch
from flwr.app import Context, RecordDict
from threaded_grid import ThreadedGrid
from existing_app import client_app, server_app_fedavg as server_app

torch.set_num_threads(1)
config = {"num-server-rounds": 6, "fraction-evaluate": 0.5, "local-epochs": 1, "learning-rate": 0.05,
          "batch-size": 32}
grid = ThreadedGrid(client_app.app, list(range(100, 110)), Path(sys.argv[1]), run_config=config)
server_app.app(grid, Context(1, 0, {}, RecordDict(), config))
assert {m.metadata.message_type for m in grid.sent} == {"query.gossip", "train.gossip", "evaluate.gossip"}
model = torch.load("final_model.pt", weights_only=True)
from flwr.app import ArrayRecord
print(server_app.global_evaluate(6, ArrayRecord(model))["accuracy"])
"""
