"""A node in an emulated board gossips with one outside it: `python gossip.py BOARD`, as root.

Both run ``flower-edge node``, over loopback with mutual TLS, and train a network in torch. Fails unless every
round counted at both and they end with the same model. Prints what they said of the last round."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np

from flower_edge.gossip import GossipPlan

ROUNDS = 6
HERE = Path(__file__).parent
NODE = ("-m", "flower_edge.cli", "node")
SETTINGS = """
[settings]
connect_timeout = 600
handshake_timeout = 60
peer_timeout = 120
decision_timeout = 60
keepalive_interval = 60
keepalive_timeout = 60
farewell_timeout = 60
"""


def free_ports() -> list[int]:
    """Return two, which nobody holds just now."""
    with socket.socket() as one, socket.socket() as other:
        for each in (one, other):
            each.bind(("127.0.0.1", 0))
        return [one.getsockname()[1], other.getsockname()[1]]


def write_files(folder: Path, name: str) -> None:
    """Write the two nodes' files: certificates, plan, and what each runs."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    shutil.copy(HERE / "steps.py", folder)
    GossipPlan.from_matrix([[0.5, 0.5], [0.5, 0.5]]).to_json(folder / "plan.json")
    made = subprocess.run(
        [sys.executable, "-m", "flower_edge.cli", "certs", "make", "0", "1", "--folder", str(folder)],
        check=True,
        capture_output=True,
        text=True,
    )
    fingerprints = {Path(line.split()[1]).stem: line.split()[0] for line in made.stdout.splitlines()}
    ports = free_ports()
    for node, other in ((0, 1), (1, 0)):
        (folder / f"{node}.toml").write_text(
            f'run = "{name}"\nnode = {node}\nplan = "plan.json"\nrounds = {ROUNDS}\n'
            f'trainer = "steps:trainer"\nlisten = "127.0.0.1:{ports[node]}"\n'
            f'key = "{node}.key"\ncertificate = "{node}.crt"\nresult = "{node}.npz"\n{SETTINGS}'
            f'[[peers]]\nnode = {other}\naddress = "127.0.0.1:{ports[other]}"\n'
            f'certificate = "{other}.crt"\nfingerprint = "{fingerprints[str(other)]}"\n'
        )


def main(board: Path) -> None:
    """Run both nodes and hold their ends against each other."""
    folder = board / "root" / "gossip"
    write_files(folder, "board and server")
    inside = ("chroot", str(board), "/usr/bin/env", "-i", "HOME=/root", "PATH=/opt/flower/bin:/usr/bin:/bin")
    commands = (
        (sys.executable, *NODE, str(folder / "0.toml")),
        (*inside, "QEMU_CPU=cortex-a76", "python", *NODE, "/root/gossip/1.toml"),
    )
    nodes = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ)
        for command in commands
    ]
    try:
        said = [node.communicate(timeout=900) for node in nodes]
    finally:
        for node in nodes:
            node.kill()
    ends = []
    for where, node, (out, errors) in zip(("x86-64", "board"), nodes, said, strict=True):
        assert node.returncode == 0, f"{where}: exit status {node.returncode}\n{errors}"
        *rounds, end = [json.loads(line) for line in out.splitlines()]
        assert [line["counted"] for line in rounds] == [[1 - len(ends)]] * ROUNDS, rounds
        assert end == {"late": [], "unsettled": [], "refusals": {}}, end
        first, last = (line["metrics"]["loss"] for line in (rounds[0], rounds[-1]))
        assert last < first, rounds
        print(f"{where}: {ROUNDS} rounds, loss {first:.4f} → {last:.4f}")
        with np.load(folder / f"{len(ends)}.npz") as result:
            ends.append({name: result[name] for name in result.files})
    apart = max(float(np.abs(ends[0][name] - ends[1][name]).max()) for name in ends[0])
    print(f"both models: at most {apart:g} apart in {len(ends[0])} arrays")
    assert apart <= 1e-6


if __name__ == "__main__":
    main(Path(sys.argv[1]))
