"""``flower-edge node`` and ``flower-edge certs``: a gossip of processes that no server knows of."""

import json
import os
import signal
import socket
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from command import COMMAND, refused, run
from processes import heed_ctrl_c

from flower_edge.gossip import GossipPlan
from flower_edge.peer import Identity

TRAINER = """
import os
import time
from pathlib import Path
import numpy as np

HERE = Path(__file__).parent

def trainer(node):
    def train(arrays, round):
        if node == 2:
            (HERE / f"{os.getpid()}.life").touch()
        while round == 20 and (HERE / "two-lives").exists() and len(list(HERE.glob("*.life"))) < 2:
            time.sleep(0.05)
        time.sleep(0.05)
        arrays["weight"] += node + 1
        arrays["steps"] += 1
        return arrays, {"loss": np.float32(1 / round), "steps": arrays["steps"].max(), "gain": np.nan}
    return {"weight": np.full((3, 5), node, np.float32), "steps": np.array(0)}, train

def talkative(node):
    def train(arrays, round):
        return arrays, {"loss": "less"}
    return {"weight": np.zeros(3, np.float32)}, train

def nothing(node):
    return None
"""
PLAN = GossipPlan.from_matrix([[0.5, 0.25, 0.25], [0.25, 0.75, 0.0], [0.25, 0.0, 0.75]])
ROUNDS = 80


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.fixture
def fleet(tmp_path: Path) -> Path:
    """The files of three nodes: 0 talks to 1 and to 2."""
    (tmp_path / "mytask.py").write_text(TRAINER)
    PLAN.to_json(tmp_path / "plan.json")
    ports = [free_port() for _ in range(3)]
    made = run("certs", "make", "0", "1", "2", "--folder", tmp_path)
    assert made.exit_code == 0, made.output
    prints = {Path(line.split()[1]).stem: line.split()[0] for line in made.stdout.splitlines()}
    for node, others in enumerate([(1, 2), (0,), (0,)]):
        peers = "".join(
            f'[[peers]]\nnode = {other}\naddress = "127.0.0.1:{ports[other]}"\n'
            f'certificate = "{other}.crt"\nfingerprint = "{prints[str(other)]}"\n'
            for other in others
        )
        (tmp_path / f"{node}.toml").write_text(
            f'run = "greenhouse"\nnode = {node}\nplan = "plan.json"\nrounds = {ROUNDS}\n'
            f'trainer = "mytask:trainer"\nlisten = "127.0.0.1:{ports[node]}"\n'
            f'key = "{node}.key"\ncertificate = "{node}.crt"\n'
            f'state = "{node}.state"\nresult = "{node}.npz"\n'
            f"[settings]\npeer_timeout = 5\nredial_interval = 0.1\n{peers}"
        )
    return tmp_path


def start(folder: Path, node: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COMMAND, "node", str(folder / f"{node}.toml")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd="/",
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        preexec_fn=heed_ctrl_c,
    )


def test_nodes_gossip_and_one_that_is_killed_goes_on(fleet: Path) -> None:
    # The others would be done before the killed node is back, where processes start slowly.
    (fleet / "two-lives").touch()
    nodes = [start(fleet, node) for node in range(3)]
    for _ in range(3):
        line = nodes[2].stdout.readline()
    nodes[2].send_signal(signal.SIGKILL)
    nodes[2].communicate()
    assert json.loads(line)["round"] == 3
    nodes[2] = start(fleet, 2)

    said = [node.communicate(timeout=60) for node in nodes]

    assert [node.returncode for node in nodes] == [0, 0, 0], said
    lines = [[json.loads(line) for line in out.splitlines()] for out, _ in said]
    assert [line["round"] for line in lines[0][:-1]] == list(range(1, ROUNDS + 1))
    assert lines[2][0]["round"] > 2
    assert lines[2][-2]["counted"] == [0]
    assert lines[1][4]["metrics"] == {"loss": pytest.approx(1 / 5), "steps": 5, "gain": None}
    assert all(line[-1] == {"late": [], "unsettled": [], "refusals": {}} for line in lines[:2])
    results = []
    for node in range(3):
        with np.load(fleet / f"{node}.npz") as result:
            results.append(result["weight"])
            steps = int(result["steps"])
        assert steps == ROUNDS if node < 2 else 3 < steps <= ROUNDS
    assert np.ptp([result.mean() for result in results]) < 5
    assert all(np.ptp(result) == 0.0 for result in results)


def test_nodes_gossip_in_few_bytes(fleet: Path) -> None:
    for node in range(3):
        config = fleet / f"{node}.toml"
        few_bytes = 'compressor = {name = "int8", per = "array"}\nalgorithm = "link"\n'
        config.write_text(few_bytes + "overlap = true\n" + config.read_text())
    nodes = [start(fleet, node) for node in range(3)]
    said = [node.communicate(timeout=60) for node in nodes]

    assert [node.returncode for node in nodes] == [0, 0, 0], said
    weights = []
    for node in range(3):
        with np.load(fleet / f"{node}.npz") as result:
            weights.append(result["weight"])
    np.testing.assert_allclose(np.mean(weights, axis=0), 1 + ROUNDS * 2, rtol=1e-5)


def test_a_metric_that_is_no_number(fleet: Path) -> None:
    for edit in (
        change("mytask:trainer", "mytask:talkative"),
        change("peer_timeout", "connect_timeout = 0.1\npeer_timeout"),
    ):
        edit(fleet)

    node = start(fleet, 0)
    _, err = node.communicate(timeout=60)

    assert node.returncode == 2
    assert "training returned metric 'loss' = 'less', expected a number" in err
    assert "Traceback" not in err


def test_interrupt(fleet: Path) -> None:
    node = start(fleet, 0)
    while "node" not in node.stderr.readline():
        pass
    node.send_signal(signal.SIGINT)
    out, err = node.communicate(timeout=30)

    assert node.returncode == 130, (out, err)
    assert "Traceback" not in err


def test_certificates(tmp_path: Path) -> None:
    made = run("certs", "make", "board", "--folder", tmp_path)

    identity = Identity.load(tmp_path / "board.key", tmp_path / "board.crt")
    assert made.stdout.split() == [identity.fingerprint, str(tmp_path / "board.crt")]
    assert stat.S_IMODE((tmp_path / "board.key").stat().st_mode) == 0o600
    assert run("certs", "show", tmp_path / "board.crt").stdout == made.stdout
    assert "is not replaced" in refused("certs", "make", "board", "--folder", tmp_path)
    assert "no PEM file" in refused("certs", "show", tmp_path / "board.key")
    assert "expected a file name without folders" in refused("certs", "make", "../x")


def change(old: str, new: str) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        text = (folder / "0.toml").read_text()
        assert old in text
        (folder / "0.toml").write_text(text.replace(old, new, 1))

    return edit


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (change('run = "greenhouse"\n', ""), "the file has no 'run'"),
        (change("node = 0", 'node = "0"'), "'node' = '0', expected a whole number"),
        (change("node = 0", "node = 3"), "node is 3, the plan has nodes 0 to 2"),
        (change("rounds = 80", "rounds = true"), "'rounds' = True, expected a whole number"),
        (change("rounds = 80", 'rounds = 80\ncompressor = "int9"'), "compressor is 'int9'; expected one of"),
        (change("rounds = 80", "rounds = 80\ncompressor = 8"), "= 8, expected a text or a table"),
        (change("rounds = 80", "rounds = 80\noverlap = 1"), "= 1, expected true or false"),
        (change("rounds = 80", "rounds = 80\ngamma = 0.5"), "there is 'gamma' without 'compressor'"),
        (
            change("rounds = 80", 'rounds = 80\ncompressor = "int8"\nalgorithm = "choco"'),
            "algorithm is 'choco'; expected one of",
        ),
        (
            change("rounds = 80", 'rounds = 80\ncompressor = "int8"\nrobust = "clip"'),
            "there are 'robust' and 'compressor'",
        ),
        (change("rounds = 80", "rounds = 0"), "received rounds 1 to 0"),
        (change("peer_timeout = 5", "timeout = 5"), "settings has 'timeout', expected some of"),
        (change("peer_timeout = 5", "peer_timeout = 0"), "peer_timeout is 0; expected a positive number"),
        (change('key = "0.key"\n', ""), "there is a 'certificate' alone"),
        (change('fingerprint = "', 'fingerprint = "00'), "expected SHA-256: 64 hexadecimal digits"),
        (change('certificate = "1.crt"', 'certificate = "2.crt"'), "of peer 1 has fingerprint"),
        (change('certificate = "1.crt"\n', ""), "expected both: the fingerprint says that the file"),
        (change("[[peers]]\nnode = 1", "[[peers]]\nnode = 2"), "received node 2 twice"),
        (change("[[peers]]\nnode = 1", "[[peers]]\nnode = 7"), "nobody says how to reach nodes [1]"),
        (change("mytask:trainer", ".mytask:trainer"), "'.mytask:trainer', expected MODULE:CALLABLE"),
        (change("mytask:trainer", "mytask"), "expected MODULE:CALLABLE"),
        (change("mytask:trainer", "mytask:absent"), "mytask has no callable 'absent'"),
        (change("mytask:trainer", "mytask:nothing"), "returned a NoneType, expected a pair"),
        (change("plan.json", "absent.json"), "absent.json"),
        (change("rounds = 80", 'rounds = 80\nrobust = "median"'), "robust is 'median'"),
        (change("0.state", "nowhere/0.state"), "make it first"),
        (change("0.npz", "0.txt"), "expected a name that ends in .npz"),
        (lambda folder: (folder / "0.key").chmod(0o644), "others may read the private key"),
        (lambda folder: (folder / "0.toml").write_text("not = toml = "), "cannot read"),
    ],
)
def test_what_is_wrong_is_said_before_anything_starts(
    edit: Callable[[Path], None], message: str, fleet: Path
) -> None:
    edit(fleet)

    assert message in refused("node", fleet / "0.toml")


def test_no_clear_text_by_leaving_something_out(fleet: Path) -> None:
    change('key = "0.key"\ncertificate = "0.crt"\n', "")(fleet)

    reason = refused("node", fleet / "0.toml")

    assert "0.toml: the file has no 'key' and 'certificate', expected both" in reason
    assert "insecure = true in [settings]" in reason
