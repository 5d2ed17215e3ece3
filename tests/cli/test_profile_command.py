"""``flower-edge profile``, on a model in a file of the user's."""

import json
from pathlib import Path

import pytest
import torch
from command import refused, run

from flower_edge.cli.profile_tables import WIDE
from flower_edge.training.profile import Profile

MODELS = """
import torch
from torch import nn

def net():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5))

def language_model():
    return nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 7))

def frozen():
    return net().requires_grad_(False)

def one_bit():
    from flower_edge.training import SignFeedback, prepare_
    return prepare_(
        nn.Sequential(nn.Conv2d(3, 64, 3), nn.Conv2d(64, 8, 3), nn.Flatten()),
        SignFeedback(feedback="sign", fallback="never"),
    )

def number():
    return 3
"""


@pytest.fixture(autouse=True)
def _models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "profiled_models.py").write_text(MODELS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "profiled_models", raising=False)


def test_the_table_and_the_file(tmp_path: Path) -> None:
    state = torch.get_rng_state()
    threads = torch.get_num_threads()

    done = run(
        *("profile", "profiled_models:net", "--input", "2,3,8,8", "--repeats", "1"),
        *("--out", tmp_path / "profile.json"),
    )

    assert done.exit_code == 0, done.stderr
    assert done.stderr == ""
    for text in ("0.conv2d", "1.batch_norm", "loss.cross_entropy", "batch 2×3×8×8", "thread CPU time"):
        assert text in done.stdout
    profile = Profile.from_json((tmp_path / "profile.json").read_text())
    assert [len(parameter[1]) for parameter in profile.parameters] == [4, 1, 1, 1, 2, 1]
    assert profile.threads == 1
    assert torch.equal(state, torch.get_rng_state())
    assert torch.get_num_threads() == threads


def test_it_shows_how_few_bytes_errors_go_back_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(WIDE))
    out = tmp_path / "profile.json"

    done = run("profile", "profiled_models:one_bit", "--input", "2,3,8,8", "--repeats", "1", "--out", out)

    assert done.exit_code == 0, done.stderr
    profile = Profile.from_json(out.read_text())
    assert 0 < profile.feedback_bytes <= 8 * 64 * 9 * 4 / 30
    assert f"weights that errors go back through: {profile.feedback_bytes} B" in " ".join(done.stdout.split())
    (row,) = (line for line in done.stdout.splitlines() if line.lstrip().startswith("1 1."))
    assert f" {profile.feedback_bytes} B " in row


def test_tokens_and_other_losses() -> None:
    done = run(
        *("profile", "profiled_models:language_model", "--input", "2,3", "--tokens", "7"),
        *("--repeats", "1", "--optimizer", "adam"),
    )

    assert done.exit_code == 0, done.stderr
    assert "0.embedding" in done.stdout
    assert "loss.square" in done.stdout


def test_a_file_is_replaced_only_with_force(tmp_path: Path) -> None:
    out = tmp_path / "profile.json"
    out.write_text("mine")
    command = ("profile", "profiled_models:net", "--input", "2,3,8,8", "--repeats", "1", "--out", out)

    assert "--force" in refused(*command)
    assert out.read_text() == "mine"
    assert run(*command, "--force").exit_code == 0
    assert json.loads(out.read_text())["format"] == "flower_edge.profile"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("profiled_models", "--input", "2,3,8,8"), "expected MODULE:CALLABLE"),
        (("profiled_models:missing", "--input", "2,3,8,8"), "no callable 'missing'"),
        (("profiled_models:number", "--input", "2,3,8,8"), "returned a int"),
        (("profiled_models:frozen", "--input", "2,3,8,8"), "none of the model's 6 parameters"),
        (("no_such_module:net", "--input", "2,3,8,8"), "no_such_module"),
        (("profiled_models:net", "--input", "2,x"), "--input is '2,x'"),
        (("profiled_models:net", "--input", "2,0"), "at least 1"),
        (("profiled_models:net", "--input", "9999999,9999999"), "elements"),
        (("profiled_models:net", "--input", "2,3,9,9", "--repeats", "1"), "cannot run"),
        (("profiled_models:net", "--input", "2,3,8,8", "--threads", "0"), "--threads is 0"),
        (("profiled_models:net", "--input", "2,3,8,8", "--repeats", "0"), "repeats is 0"),
        (("profiled_models:language_model", "--input", "2,3", "--tokens", "0"), "--tokens is 0"),
        (("profiled_models:net", "--input", "2,3,8,8", "--out", "profile.txt"), "ends in .json"),
    ],
)
def test_what_is_refused(arguments: tuple[str, ...], message: str) -> None:
    assert message in refused("profile", *arguments)
