"""The file that says what a node without a server does."""

import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

from flower_edge.gossip.codec import ArraySpec, Layout
from flower_edge.gossip.compression import Compression, named_compressor
from flower_edge.gossip.mixer import Mixer
from flower_edge.gossip.plan import GossipPlan
from flower_edge.gossip.robust import named_mixer
from flower_edge.peer.identity import Identity, checked_fingerprint, fingerprint, read_pem
from flower_edge.peer.members import Member
from flower_edge.peer.settings import PeerSettings

LARGEST_FILE = 2**20

_TEXT, _NUMBER = (str,), (int,)
_REQUIRED = {
    "run": _TEXT,
    "node": _NUMBER,
    "plan": _TEXT,
    "rounds": _NUMBER,
    "trainer": _TEXT,
    "listen": _TEXT,
}
_OPTIONAL = {
    "key": _TEXT,
    "certificate": _TEXT,
    "state": _TEXT,
    "result": _TEXT,
    "robust": _TEXT,
    "compressor": (str, dict),
    "algorithm": _TEXT,
    "gamma": (float, int),
    "overlap": (bool,),
    "settings": (dict,),
    "peers": (list,),
}
_OF_A_PEER = {"node": _NUMBER, "address": _TEXT}
_PINS = {"certificate": _TEXT, "fingerprint": _TEXT}


@dataclass(frozen=True)
class NodeConfig:
    """What a node without a server does.

    Attributes
    ----------
    folder : Path
        Of the file; other paths are relative to it.
    run, listen, trainer : str
    node, rounds : int
    plan : GossipPlan
    members : tuple of Member
    identity : Identity or None
    robust : str or None
    compression : callable or None
        Takes the model's layout, if models travel in few bytes.
    overlap : bool
    settings : PeerSettings
    state, result : Path or None
    """

    folder: Path
    run: str
    node: int
    plan: GossipPlan
    rounds: int
    trainer: str
    listen: str
    members: tuple[Member, ...]
    identity: Identity | None
    robust: str | None
    compression: Callable[[Layout], Compression] | None
    overlap: bool
    settings: PeerSettings
    state: Path | None
    result: Path | None

    @classmethod
    def read(cls, path: Path) -> "NodeConfig":
        """Read a TOML file, and the files that it names.

        Raises
        ------
        ValueError
            If something is missing, unknown, of another type, or does not fit the rest; the message says
            which key.
        """
        try:
            with path.open("rb") as file:
                content = file.read(LARGEST_FILE + 1)
            if len(content) > LARGEST_FILE:
                raise ValueError(f"more than {LARGEST_FILE} bytes")
            table = tomllib.loads(content.decode())
        except (OSError, ValueError) as error:
            raise ValueError(f"cannot read {str(path)!r}: {error}") from error
        try:
            return cls._of(table, path.parent)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def mixer(self, layout: Layout) -> Mixer[Any]:
        """Return this node's mixer of a model's vectors."""
        if self.compression is not None:
            return self.compression(layout).mixer(self.node, self.plan, layout)
        return named_mixer(self.robust)(self.node)

    @classmethod
    def _of(cls, table: dict[str, Any], folder: Path) -> "NodeConfig":
        _check_keys("the file", table, _REQUIRED, _OPTIONAL)
        known = {field.name for field in fields(PeerSettings)}
        settings = table.get("settings", {})
        if strange := sorted(settings.keys() - known):
            raise ValueError(f"settings has {strange[0]!r}, expected some of {sorted(known)}")
        identity = _identity(table, folder)
        if identity is None and not settings.get("insecure"):
            raise ValueError(
                "the file has no 'key' and 'certificate', expected both, as flower-edge certs make writes "
                "them; to send models in clear text, say insecure = true in [settings]"
            )
        plan = GossipPlan.from_json(folder / table["plan"])
        if not 0 <= table["node"] < plan.n:
            raise ValueError(f"node is {table['node']}, the plan has nodes 0 to {plan.n - 1}")
        return cls(
            folder=folder,
            run=table["run"],
            node=table["node"],
            plan=plan,
            rounds=table["rounds"],
            trainer=table["trainer"],
            listen=table["listen"],
            members=tuple(_member(peer, folder) for peer in table.get("peers", [])),
            identity=identity,
            robust=_robust(table),
            compression=_compression(table, plan),
            overlap=table.get("overlap", False),
            settings=PeerSettings(**settings),
            state=folder / table["state"] if "state" in table else None,
            result=folder / table["result"] if "result" in table else None,
        )


def _robust(table: Mapping[str, Any]) -> str | None:
    robust = table.get("robust")
    named_mixer(robust)
    if robust is not None and "compressor" in table:
        raise ValueError("there are 'robust' and 'compressor', expected one: robust mixers compare models")
    return robust


def _compression(table: Mapping[str, Any], plan: GossipPlan) -> Callable[[Layout], Compression] | None:
    if "compressor" not in table:
        if alone := sorted({"algorithm", "gamma"} & table.keys()):
            raise ValueError(f"there is {alone[0]!r} without 'compressor', expected both")
        return None
    compressor = named_compressor(table["compressor"])
    make = partial(
        Compression.of,
        plan,
        compressor=compressor,
        algorithm=table.get("algorithm"),
        gamma=table.get("gamma"),
    )
    # What does not go together is an error before anything is trained.
    whole = Layout((ArraySpec("vector", (1, 1), "float32"),))
    make(whole).mixer(table["node"], plan, whole)
    return make


def _identity(table: Mapping[str, Any], folder: Path) -> Identity | None:
    given = {"key", "certificate"} & table.keys()
    if not given:
        return None
    if len(given) == 1:
        raise ValueError(f"there is a {given.pop()!r} alone, expected 'key' and 'certificate'")
    return Identity.load(folder / table["key"], folder / table["certificate"])


def _member(peer: object, folder: Path) -> Member:
    if not isinstance(peer, dict):
        raise ValueError(f"peers has {peer!r:.60}, expected tables: [[peers]]")
    _check_keys("a peer", peer, _OF_A_PEER, _PINS)
    if not _PINS.keys() & peer.keys():
        return Member(peer["node"], peer["address"])
    if len(_PINS.keys() & peer.keys()) == 1:
        raise ValueError(
            f"peer {peer['node']} has no certificate or no fingerprint, expected both: the fingerprint says "
            "that the file is the one you mean"
        )
    certificate = read_pem(folder / peer["certificate"])
    found, pinned = fingerprint(certificate), checked_fingerprint(peer["fingerprint"])
    if found != pinned:
        raise ValueError(
            f"the certificate {peer['certificate']!r} of peer {peer['node']} has fingerprint {found}, "
            f"expected {pinned}"
        )
    return Member(peer["node"], peer["address"], certificate)


def _check_keys(
    where: str, table: Mapping[str, Any], required: Mapping[str, Any], optional: Mapping[str, Any]
) -> None:
    if missing := [key for key in required if key not in table]:
        raise ValueError(f"{where} has no {missing[0]!r}, expected {sorted(required)}")
    for key, value in table.items():
        types = required.get(key, optional.get(key))
        if types is None:
            raise ValueError(
                f"{where} has {key!r}, expected {sorted(required)} and perhaps {sorted(optional)}"
            )
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            expected = " or ".join(_NAMES[kind] for kind in types)
            raise ValueError(f"{where} has {key!r} = {value!r:.60}, expected {expected}")


_NAMES = {
    str: "a text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    dict: "a table",
    list: "a list of tables",
}
