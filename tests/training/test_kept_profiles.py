"""Profiles on disk: read where they fit, measured anew where they do not."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import BATCH, CLASSES, IMAGES, Chain, TwoBranches
from torch import nn
from torch.nn import functional

from flower_edge.training import GradientFilter, Profile, kept_profile, prepare_


def sgd(model: nn.Module, **options: Any) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), **{"lr": 0.1, "momentum": 0.9, **options})


def kept(model: nn.Module, folder: Path, batch: Any = BATCH, **options: Any) -> Profile:
    return kept_profile(
        model, batch, functional.cross_entropy, folder, **{"optimizer": sgd(model), **options}
    )


def test_a_profile_is_measured_once(tmp_path: Path) -> None:
    told: list[str] = []
    folder = tmp_path / "new" / "profiles"

    first = kept(Chain(), folder, progress=lambda what, *_: told.append(what))
    measured = len(told)
    second = kept(Chain(), folder, progress=lambda what, *_: told.append(what))

    assert measured
    assert len(told) == measured
    assert second == first
    assert second.graph.full_cost == first.graph.full_cost
    assert [path.suffix for path in folder.iterdir()] == [".json"]


def test_learning_rates_and_weights_make_no_difference(tmp_path: Path) -> None:
    first, second = Chain(), Chain()

    kept(first, tmp_path)
    kept(second, tmp_path, optimizer=sgd(second, lr=0.01, momentum=0.5))

    assert len(list(tmp_path.iterdir())) == 1


def others() -> list[tuple[nn.Module, Any, Any]]:
    frozen, settings, stride, still = Chain(), Chain(), Chain(), Chain()
    frozen[0].requires_grad_(False)
    stride[5].stride = (1, 1)
    still[3].eval()
    prepared = prepare_(Chain(), GradientFilter(patch_size=2, basis="walsh"))
    wide = prepare_(Chain(), GradientFilter(patch_size=4, basis="walsh"))
    smaller = (IMAGES[:4], CLASSES[:4])
    return [
        (Chain(), BATCH, None),
        (TwoBranches(), BATCH, None),
        (Chain(), smaller, None),
        (frozen, BATCH, None),
        (stride, BATCH, None),
        (still, BATCH, None),
        (prepared, BATCH, None),
        (wide, BATCH, None),
        (settings, BATCH, torch.optim.Adam(settings.parameters())),
    ]


def test_everything_else_that_costs_does(tmp_path: Path) -> None:
    cases = others()

    for model, batch, optimizer in cases:
        kept(model, tmp_path, batch, optimizer=optimizer or sgd(model))

    assert len(list(tmp_path.iterdir())) == len(cases)


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: text[: len(text) // 2],
        lambda text: "[1]",
        lambda text: json.dumps({**json.loads(text), "forward_seconds": -1}),
        lambda text: json.dumps({**json.loads(text), "device": "abacus"}),
        lambda text: json.dumps({**json.loads(text), "threads": 10**6}),
        lambda text: text.replace("10.weight", "11.weight"),
    ],
)
def test_a_damaged_file_is_measured_anew(tmp_path: Path, damage: Any) -> None:
    kept(Chain(), tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_text(damage(path.read_text()))

    again = kept(Chain(), tmp_path)

    assert again.forward_seconds > 0
    assert list(tmp_path.iterdir()) == [path]
    assert Profile.from_json(path.read_text(), Chain()) == again


def test_bytes_that_are_no_text_are_measured_anew(tmp_path: Path) -> None:
    kept(Chain(), tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_bytes(b"\xff\xfe\x00" * 100)

    again = kept(Chain(), tmp_path)

    assert Profile.from_json(path.read_text(), Chain()) == again


def test_a_profile_that_cannot_be_written_is_returned_all_the_same(tmp_path: Path) -> None:
    kept(Chain(), tmp_path)
    (path,) = tmp_path.iterdir()
    path.unlink()
    path.mkdir()
    (path / "in the way").touch()

    with pytest.warns(UserWarning, match="could not be kept"):
        found = kept(Chain(), tmp_path)

    assert found.forward_seconds > 0
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(FileExistsError):
        kept(Chain(), tmp_path / "file")
