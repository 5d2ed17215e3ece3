"""The picture and the page: drawn from plain data, and complete in themselves."""

import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flower_edge.report import Method, Report, Topology, write_html, write_png


@pytest.fixture
def report() -> Report:
    full = np.array([(i, j) for i in range(5) for j in range(i + 1, 5)])
    rounds = range(2, 22, 2)
    curve = [1 - 0.9 ** (r / 2) for r in rounds]
    return Report(
        title="Gossip <b>& friends</b>",
        subtitle="five nodes",
        positions=np.array([(np.cos(a), np.sin(a)) for a in np.arange(5)]),
        before=Topology("Before", full, np.full(5, 4e-3)),
        after=Topology("After", full[::2], np.array([1, 2, 3, 2, 1]) * 1e-3),
        methods=[
            Method("FedAvg", rounds, curve, [5e-3 * r for r in rounds]),
            Method(
                *("gossip", rounds, curve, [1e-3 * r for r in rounds]),
                lowest=[a / 2 for a in curve],
                highest=[min(1.0, 1.2 * a) for a in curve],
                consensus_distance={r: 1 / r for r in range(1, 21)},
            ),
        ],
        target=0.5,
        columns=("method", "energy"),
        rows=[("FedAvg", "7 mWh"), ("gossip", "<3 mWh>")],
        verdict="Saves 60 %.",
        notes=["Energy (modelled): a & b"],
    )


def png_of(report: Report) -> Image.Image:
    file = BytesIO()
    write_png(report, file)
    file.seek(0)
    return Image.open(file)


def test_the_picture_has_the_size_it_says(report: Report) -> None:
    image = png_of(report)

    assert image.format == "PNG"
    assert image.size == (1800, 1440)


def test_the_picture_shows_the_data(report: Report) -> None:
    drawn = np.asarray(png_of(report).convert("RGB"))
    fewer_links = replace(report, after=replace(report.after, links=report.after.links[:1]))
    worse = [replace(m, accuracy=[a / 2 for a in m.accuracy]) for m in report.methods]

    assert len(np.unique(drawn.reshape(-1, 3), axis=0)) > 100, "the picture is empty"
    for other in (fewer_links, replace(report, methods=worse), replace(report, target=0.9)):
        assert (np.asarray(png_of(other).convert("RGB")) != drawn).any()


def test_a_method_that_never_reaches_the_target_is_drawn(report: Report) -> None:
    assert png_of(replace(report, target=0.99)).size == (1800, 1440)


class Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, str | None]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        assert tag not in ("script", "link", "iframe", "object")
        self.found += [(tag, value) for name, value in attributes if name in ("src", "href", "srcset")]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_needs_nothing_else(report: Report, tmp_path: Path) -> None:
    write_html(report, tmp_path / "report.html")
    content = (tmp_path / "report.html").read_text("utf-8")
    page = Links()
    page.feed(content)

    assert [tag for tag, _ in page.found] == ["img"]
    assert all(value is not None and value.startswith("data:image/png;base64,") for _, value in page.found)
    assert not re.search(r"https?:|url\(|@import", content)


def test_the_page_says_everything_and_escapes_it(report: Report, tmp_path: Path) -> None:
    write_html(report, tmp_path / "report.html")
    page = Links()
    page.feed((tmp_path / "report.html").read_text("utf-8"))

    for text in (report.title, report.subtitle, report.verdict, *report.notes, "<3 mWh>", "energy"):
        assert text in page.text


def test_energies_are_for_all_nodes(report: Report) -> None:
    with pytest.raises(ValueError, match=r"Before: received energies of shape \(4,\) for 5 positions"):
        replace(report, before=replace(report.before, energy=np.ones(4)))


def test_links_lead_to_nodes(report: Report) -> None:
    with pytest.raises(ValueError, match=r"After: a link leads to a node that is not one of 0\.\.4"):
        replace(report, after=replace(report.after, links=np.array([(0, 5)])))


def test_rows_fit_the_columns(report: Report) -> None:
    with pytest.raises(ValueError, match="has 1 cells, expected 2"):
        replace(report, rows=[("FedAvg",)])


def test_curves_are_of_one_length() -> None:
    with pytest.raises(ValueError, match="received 2 rounds, 1 accuracies"):
        Method("gossip", [1, 2], [0.5], [1.0, 2.0])
    with pytest.raises(ValueError, match="received 0 rounds"):
        Method("gossip", [], [], [])
    with pytest.raises(ValueError, match="1 lowest and 0 highest"):
        Method("gossip", [1], [0.5], [1.0], lowest=[0.1])


def test_without_matplotlib_the_extra_is_named() -> None:
    script = """
import sys
sys.modules["matplotlib"] = None
from flower_edge.report import write_png
try:
    write_png(None, "never.png")
except ImportError as error:
    assert "flower_edge[report]" in str(error), error
else:
    raise AssertionError("matplotlib is blocked, so this has to fail")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
