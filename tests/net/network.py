"""Hosts that are network namespaces, on two switches with a cable between them."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SUBNET = "10.97.0"
OURS = f"fe-{os.getpid()}"
HUB = f"{OURS}-hub"


class NoNetworkError(Exception):
    """This machine lets nobody make network namespaces."""


def ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise NoNetworkError(f"ip {' '.join(words)}: {done.stderr.strip()}")


class Network:
    """Hosts 0 to n-1, each with one cable; the first half on switch a, the others on b."""

    def __init__(self, hosts: int) -> None:
        self.hosts = hosts

    def build(self) -> None:
        ip("netns", "add", HUB)
        for switch in "ab":
            ip("-n", HUB, "link", "add", f"sw-{switch}", "type", "bridge")
            ip("-n", HUB, "link", "set", f"sw-{switch}", "up")
        ip("-n", HUB, "link", "add", "trunk-a", "type", "veth", "peer", "name", "trunk-b")
        for switch in "ab":
            ip("-n", HUB, "link", "set", f"trunk-{switch}", "master", f"sw-{switch}", "up")
        for host in range(self.hosts):
            switch = "sw-a" if host < self.hosts // 2 else "sw-b"
            ip("netns", "add", self.name(host))
            ip("-n", HUB, "link", "add", self.cable(host), "type", "veth", "peer", "name", f"end-{host}")
            ip("-n", HUB, "link", "set", f"end-{host}", "netns", self.name(host), "name", "eth0")
            ip("-n", HUB, "link", "set", self.cable(host), "master", switch, "up")
            ip("-n", self.name(host), "addr", "add", f"{self.address(host)}/24", "dev", "eth0")
            ip("-n", self.name(host), "link", "set", "eth0", "up")
            ip("-n", self.name(host), "link", "set", "lo", "up")

    def destroy(self) -> None:
        for name in [HUB, *(self.name(host) for host in range(self.hosts))]:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)

    def name(self, host: int) -> str:
        return f"{OURS}-host-{host}"

    def cable(self, host: int) -> str:
        return f"cable-{host}"

    def address(self, host: int) -> str:
        return f"{SUBNET}.{host + 1}"

    def prefix(self, host: int) -> list[str]:
        """The command under which a process runs on a host."""
        return ["ip", "netns", "exec", self.name(host)]

    def unplug(self, host: int) -> None:
        ip("-n", HUB, "link", "set", self.cable(host), "down")

    def plug(self, host: int) -> None:
        ip("-n", HUB, "link", "set", self.cable(host), "up")

    def split(self) -> None:
        """Take the cable between the switches down: two halves."""
        ip("-n", HUB, "link", "set", "trunk-a", "down")

    def heal(self) -> None:
        ip("-n", HUB, "link", "set", "trunk-a", "up")

    def shape(self, host: int, *discipline: str) -> None:
        """Give a host's outgoing cable a queueing discipline, such as ``tbf rate 20mbit …``."""
        command = ["tc", "-n", self.name(host), "qdisc", "replace", "dev", "eth0", "root", *discipline]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            raise NoNetworkError("there is no command tc: install iproute2") from None
        if done.returncode:
            raise NoNetworkError(f"{' '.join(command)}: {done.stderr.strip()}")


@contextmanager
def network(hosts: int) -> Iterator[Network]:
    if not any(Path(folder, "ip").exists() for folder in ("/sbin", "/usr/sbin", "/bin", "/usr/bin")):
        raise NoNetworkError("there is no command ip: install iproute2")
    net = Network(hosts)
    try:
        net.build()
        yield net
    finally:
        net.destroy()
