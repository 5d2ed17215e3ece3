"""The real command, on real graphs: what it prints, what it writes, and what it refuses."""

import json
import os
import pty
import resource
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from command import COMMAND, FRONTIER, MAP, QUICK, ROOT, WH, png_size, refused, run
from processes import heed_ctrl_c

from flower_edge.cli import app
from flower_edge.cli.screen import heeding_interrupts
from flower_edge.gossip import GossipPlan, UnicastEnergy, load_graph, optimize
from flower_edge.gossip.radio import WAVELAN_2MBIT, Radio


def test_the_script_is_the_app() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    module, _, name = project["scripts"]["flower-edge"].partition(":")

    assert getattr(import_module(module), name) is app


def test_the_plan_is_the_library_s(plan_file: Path) -> None:
    plan = GossipPlan.from_json(plan_file)

    assert plan == optimize(load_graph("torus:3x4"), UnicastEnergy(0.0, 1e-3, 2e-3))
    assert list(plan_file.parent.iterdir()) == [plan_file], "a partial file is left"


def test_optimize_says_what_it_chose_and_why() -> None:
    result = run("topology", "optimize", "torus:3x4", *WH)
    plan = optimize(load_graph("torus:3x4"), UnicastEnergy(0.0, 1e-3, 2e-3))
    choice = plan.choice

    assert choice is not None
    assert choice.verdict in result.stdout
    assert result.stderr == "", "progress is for terminals"
    for candidate in (choice.chosen, *choice.baselines):
        [line] = [
            line for line in result.stdout.splitlines() if line.strip(" ★").startswith(f"{candidate.name}  ")
        ]
        assert f"{candidate.rho:.4f}" in line
        assert f"{1e3 * candidate.energy:.3g}" in line
    assert f"{100 * choice.saving:.0f} %" in result.stdout
    for text in (
        "mWh",
        "modelled",
        "Modelled energies: unicast, nothing to train, 1 mWh to send",
        "not written",
    ):
        assert text in result.stdout


def test_the_busiest_nodes_are_those_of_the_plan(tmp_path: Path) -> None:
    out = tmp_path / "plan.json"
    result = run("topology", "optimize", "geometric:12:20", *WH, *QUICK, "-o", out)
    energy = GossipPlan.from_json(out).mean_energy_per_node()
    table = result.stdout[result.stdout.index("busiest     links") :].splitlines()[3:8]

    assert [int(line.split()[0]) for line in table] == np.argsort(-energy, kind="stable")[:5].tolist()
    assert float(table[0].split()[2]) == pytest.approx(1e3 * energy.max(), rel=5e-3)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ((), WAVELAN_2MBIT.unicast(1e6, compute=0)),
        (("--model-bytes", "5e4", "--compute", "0.01"), WAVELAN_2MBIT.unicast(5e4, compute=0.01)),
        (("--radio", "wavelan-2mbit", "--broadcast"), WAVELAN_2MBIT.broadcast(1e6, compute=0)),
        (
            (
                *("--bitrate", "2e7", "--send-watts", "1.2", "--receive-watts", "1", "--compute-watts", "3"),
                *("--compute-seconds", "2"),
            ),
            Radio.from_power(bitrate=2e7, send_watts=1.2, receive_watts=1).unicast(1e6, compute=3 * 2 / 3600),
        ),
        (
            (*WH, "--battery", "1=inf", "--battery", "20", "--battery", "0=5"),
            UnicastEnergy(0.0, 1e-3, 2e-3, battery=[5.0, np.inf, *[20.0] * 4]),
        ),
    ],
)
def test_energies_are_those_of_the_options(
    tmp_path: Path, options: tuple[str, ...], expected: UnicastEnergy
) -> None:
    out = tmp_path / "plan.json"
    assert run("topology", "optimize", "ring:6", *QUICK, *options, "--out", out).exit_code == 0

    assert GossipPlan.from_json(out).energy == expected


def test_link_qualities_count_unless_told_otherwise(tmp_path: Path) -> None:
    mesh, out = tmp_path / "mesh.json", tmp_path / "plan.json"
    mesh.write_text('{"n": 3, "edges": [[0, 1, 0.5], [1, 2], [0, 2]]}')

    for options in (WH, ()):
        run("topology", "optimize", mesh, *QUICK, *options, "--out", out, "--force")
        energy = GossipPlan.from_json(out).energy
        assert energy is not None
        assert energy.transmissions is not None
        assert energy.transmissions.factors.tolist() == [2, 1, 1]
        run("topology", "optimize", mesh, *QUICK, *options, "--ignore-quality", "--out", out, "--force")
        assert GossipPlan.from_json(out).energy.transmissions is None  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        (("ring:8", "--send", "1"), "--receive missing: --send, --receive go together"),
        (("ring:8", *WH, "--radio", "wavelan-2mbit"), "--radio does not go with"),
        (("ring:8", *WH, "--model-bytes", "1"), "--model-bytes does not go with"),
        (("ring:8", "--bitrate", "1e6"), "--send-watts, --receive-watts missing"),
        (("ring:8", "--compute", "1", "--compute-watts", "1"), "--compute does not go with"),
        (("ring:8", "--compute-watts", "inf", "--compute-seconds", "1"), "inf W for 1.0 s"),
        (("ring:8", "--model-bytes", "0"), "model_bytes is 0"),
        (("ring:8", "--send", "-1", "--receive", "1"), "send is -1.0 Wh"),
        (("ring:8", "--battery", "8=1"), "expected one of the nodes 0 to 7"),
        (("ring:8", "--battery", "much"), "'much', expected Wh or NODE=WH"),
        (("ring:8", "--battery", "1e"), "'1e', expected Wh or NODE=WH"),
        (("ring:8", "--objective", "lifetime"), "needs batteries"),
        (("ring:8", "--mode", "best"), "'best' is not one of 'auto'"),
        (("ring:8", "--min-connectivity", "3"), "falls apart"),
        (("ring:8", "--max-slowdown", "nan"), "max_slowdown is nan"),
        (("ring:1",), "graph of 1 nodes"),
        (("star:8",), "expected a file or one of complete:NODES"),
        (("nowhere.json",), "cannot read 'nowhere.json'"),
        ((), "Missing argument 'GRAPH'"),
        (("ring:8", "--frobnicate"), "No such option"),
        (("ring:8", "--plot", "plan.jpeg"), "expected a name that ends in .png"),
        (("ring:8", "--plot", "a.png", "--frontier", "./a.png"), "one name for several files"),
    ],
)
def test_bad_input_is_refused_in_one_line(args: tuple[str, ...], reason: str) -> None:
    assert reason in refused("topology", "optimize", *args)


def test_an_existing_file_is_kept(tmp_path: Path) -> None:
    out = tmp_path / "plan.json"
    out.write_text("precious")

    # Before any work: the graph is not even looked for.
    assert "exists: choose another name, or replace it with --force" in refused(
        "topology", "optimize", "nowhere.json", "--out", out
    )
    assert out.read_text() == "precious"

    assert run("topology", "optimize", "ring:6", *QUICK, "--out", out, "--force").exit_code == 0
    assert GossipPlan.from_json(out).n == 6


@pytest.mark.parametrize("folder", ["missing", "a_file", "/proc"])
def test_a_folder_that_takes_no_file_is_refused_before_any_work(tmp_path: Path, folder: str) -> None:
    (tmp_path / "a_file").touch()

    reason = refused("topology", "optimize", "nowhere.json", "--out", tmp_path / folder / "plan.json")

    assert "cannot write" in reason


def test_a_disk_that_fills_up_leaves_nothing(tmp_path: Path) -> None:
    def little_room() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))

    done = subprocess.run(
        [*COMMAND, "topology", "optimize", "ring:6", *QUICK, "--out", tmp_path / "plan.json"],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=little_room,
        cwd=ROOT,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )

    assert done.returncode == 2
    assert done.stderr.startswith("flower-edge: cannot write ")
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_ends_a_long_solve_and_leaves_nothing(tmp_path: Path) -> None:
    terminal, process_side = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, "topology", "optimize", "geometric:150:1500", "--out", tmp_path / "plan.json"],
        stdout=subprocess.PIPE,
        stderr=process_side,
        cwd=ROOT,
        env={**os.environ, "TERM": "xterm"},
        preexec_fn=heed_ctrl_c,
    )
    os.close(process_side)
    seen = b""
    while b"looking for plans" not in seen:
        seen += os.read(terminal, 4096)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=20)
    os.close(terminal)

    assert process.returncode == 130
    assert output == b""
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def ctrl_c() -> Iterator[Callable[[], None]]:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield lambda: signal.raise_signal(signal.SIGINT)
    signal.signal(signal.SIGINT, before)


def test_an_import_that_is_cut_short_is_an_interrupt(ctrl_c: Callable[[], None]) -> None:
    def half_an_import() -> None:
        try:
            ctrl_c()
        except KeyboardInterrupt:
            raise ImportError("cannot import name") from None

    with pytest.raises(KeyboardInterrupt), heeding_interrupts():
        half_an_import()
    with pytest.raises(ImportError, match="nothing"), heeding_interrupts():
        raise ImportError("nothing of the kind")


def test_an_interrupt_that_is_swallowed_is_raised_again(ctrl_c: Callable[[], None]) -> None:
    with heeding_interrupts() as again:
        again()
        with suppress(KeyboardInterrupt):
            ctrl_c()
        with pytest.raises(KeyboardInterrupt):
            again()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_pictures_are_written(tmp_path: Path) -> None:
    plot, frontier = tmp_path / "plan.png", tmp_path / "frontier.png"

    result = run("topology", "optimize", "geometric:12:20", *WH, "--plot", plot, "--frontier", frontier)

    assert result.exit_code == 0, result.output
    assert png_size(plot) == MAP
    assert png_size(frontier) == FRONTIER


@pytest.mark.parametrize(
    "args",
    [
        ("optimize", "nowhere.json", "--plot", "a.png"),
        ("optimize", "nowhere.json", "--frontier", "a.png"),
        ("compare", "nowhere.json", "--plot", "a.png"),
        ("show", "nowhere.json", "--plot", "a.png"),
    ],
)
def test_without_matplotlib_pictures_are_refused_first(
    monkeypatch: pytest.MonkeyPatch, args: tuple[str, ...]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)

    assert "flower_edge[report]" in refused("topology", *args)


def test_compare_for_people(tmp_path: Path) -> None:
    plot = tmp_path / "frontier.png"
    result = run("topology", "compare", "torus:3x4", *WH, "--plot", plot)

    assert result.exit_code == 0, result.output
    for text in (
        "baselines",
        "frontier",
        "★",
        "random matchings",
        "MATCHA(0.1)",
        "busiest node (modelled)",
        f"wrote {plot}",
    ):
        assert text in result.stdout
    assert png_size(plot) == FRONTIER


def test_compare_for_machines() -> None:
    result = run("topology", "compare", "torus:3x4", *WH, "--json")
    document = json.loads(result.stdout)
    choice = optimize(load_graph("torus:3x4"), UnicastEnergy(0.0, 1e-3, 2e-3)).choice

    assert choice is not None
    assert (document["nodes"], document["links"], document["energy_unit"]) == (12, 24, "Wh")
    assert document["verdict"] == choice.verdict
    assert document["chosen"]["saved"] == pytest.approx(choice.saving)
    assert [b["name"] for b in document["baselines"]] == [b.name for b in choice.baselines]
    assert [f["rho"] for f in document["frontier"]] == [f.rho for f in choice.frontier]
    assert document["baselines"][0]["predicted_energy_relative"] == 1
    assert sum(record["chosen"] for record in [*document["baselines"], *document["frontier"]]) <= 1


def test_lifetimes_are_shares_of_batteries() -> None:
    options = ("--objective", "lifetime", "--battery", "20", *WH, *QUICK)

    assert "share of a battery (modelled)" in run("topology", "compare", "ring:6", *options).stdout
    document = json.loads(run("topology", "compare", "ring:6", *options, "--json").stdout)
    assert document["energy_unit"] == "share of a battery"
    assert document["baselines"][0]["modelled_energy_a_round"] == pytest.approx(2 * 3e-3 / 20)


def test_help_and_version() -> None:
    for command in (
        (),
        ("topology",),
        ("topology", "optimize"),
        ("topology", "compare"),
        ("topology", "show"),
    ):
        result = run(*command, "--help")
        assert result.exit_code == 0
        assert "Usage:" in result.stdout
    from flower_edge import __version__

    assert run("--version").stdout == f"flower-edge {__version__}\n"
    assert "No such command 'frobnicate'" in refused("frobnicate")


@pytest.mark.parametrize("command", [(), ("topology",), ("certs",)])
def test_a_command_without_arguments_shows_its_help_and_no_error(command: tuple[str, ...]) -> None:
    result = run(*command)

    assert result.exit_code == 2
    assert "Usage: " in result.stdout
    assert result.stderr == ""


def test_help_and_a_closed_pipe_end_quietly() -> None:
    done = subprocess.run(
        f"{' '.join(COMMAND)} topology optimize ring:6 {' '.join(QUICK)} | head -1",
        shell=True,
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )

    assert done.stdout.count("\n") == 1
    assert done.stderr == ""
