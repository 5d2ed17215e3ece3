"""How nodes exchange models in few bytes, by names that a board reads: algorithm, compressor, and γ."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

from flower_edge.gossip.choco_copies import ChocoCopies
from flower_edge.gossip.codec import Layout, Vector
from flower_edge.gossip.compressed import CompressedMixer, DeepSqueeze, Links, PlainQuantised
from flower_edge.gossip.compressor import BFloat16, Compressor, Float32
from flower_edge.gossip.link_choco import LinkChoco
from flower_edge.gossip.plan import GossipPlan
from flower_edge.gossip.quantise import Int4, Int8
from flower_edge.gossip.sparse import SignNorm, TopK

COMPRESSORS: Mapping[str, type[Compressor]] = MappingProxyType(
    {"fp32": Float32, "bf16": BFloat16, "int8": Int8, "int4": Int4, "sign": SignNorm, "topk": TopK}
)
"""By the name that config files know them by."""

ALGORITHMS: Mapping[str, type[CompressedMixer]] = MappingProxyType(
    {mixer.algorithm: mixer for mixer in (ChocoCopies, LinkChoco, DeepSqueeze, PlainQuantised)}
)
"""Those that work between boards, by name."""


def default_algorithm(plan: Links) -> type[CompressedMixer]:
    """Return what boards use unless they are told: `ChocoCopies` for one phase, else `LinkChoco`."""
    return ChocoCopies if len(plan.phases) == 1 else LinkChoco


def named_compressor(given: str | Mapping[str, Any]) -> Compressor:
    """Return the compressor of a name, such as ``"int8"``, or of a name and what else it is set to.

    Parameters
    ----------
    given : str or mapping
        ``{"name": "topk", "share": 0.05}``, for example.

    Raises
    ------
    ValueError
        If there is none of that name, or it cannot be set so.
    """
    fields = {"name": given} if isinstance(given, str) else dict(given)
    name = str(fields.pop("name", None))
    if name not in COMPRESSORS:
        raise ValueError(f"compressor is {name!r:.60}; expected one of {sorted(COMPRESSORS)}")
    try:
        return COMPRESSORS[name](**fields)
    except TypeError as error:
        raise ValueError(f"compressor {name!r} cannot be set to {fields!r:.200}: {error}") from error


def to_named(compressor: Compressor) -> dict[str, Any]:
    """Return what `named_compressor` makes the same compressor of.

    Raises
    ------
    ValueError
        If it is none of those that have a name.
    """
    for name, kind in COMPRESSORS.items():
        if type(compressor) is kind:
            return {"name": name, **asdict(compressor)}
    raise ValueError(f"boards know compressors {sorted(COMPRESSORS)}, received a {type(compressor).__name__}")


@dataclass(frozen=True)
class Compression:
    """What all nodes of a run have to agree on to exchange models in few bytes.

    Parameters
    ----------
    algorithm : str
        One of `ALGORITHMS`.
    compressor : Compressor
    gamma : float
        The step γ.

    Raises
    ------
    ValueError
        If there is no such algorithm.
    """

    algorithm: str
    compressor: Compressor
    gamma: float

    def __post_init__(self) -> None:
        if self.algorithm not in ALGORITHMS:
            raise ValueError(f"algorithm is {self.algorithm!r:.60}; expected one of {sorted(ALGORITHMS)}")

    @classmethod
    def of(
        cls,
        plan: GossipPlan,
        layout: Layout,
        compressor: Compressor,
        algorithm: str | None = None,
        gamma: float | None = None,
    ) -> "Compression":
        """Choose what is not given by the plan and the model."""
        kind = default_algorithm(plan) if algorithm is None else ALGORITHMS.get(algorithm)
        if kind is None:
            raise ValueError(f"algorithm is {algorithm!r:.60}; expected one of {sorted(ALGORITHMS)}")
        step = kind.default_gamma(plan, compressor.codec(layout)) if gamma is None else gamma
        return cls(kind.algorithm, compressor, step)

    def mixer(self, node: int, links: Links, layout: Layout, start: Vector | None = None) -> CompressedMixer:
        """Return a node's mixer; the errors are those of `CompressedMixer`."""
        make = partial(ALGORITHMS[self.algorithm], gamma=self.gamma, start=start)
        return make(node, links, self.compressor.codec(layout))

    def to_json(self) -> str:
        """Return what `from_json` reads."""
        named = to_named(self.compressor)
        return json.dumps({"algorithm": self.algorithm, "compressor": named, "gamma": self.gamma})

    @classmethod
    def from_json(cls, text: str) -> "Compression":
        """Read what `to_json` wrote.

        Raises
        ------
        ValueError
            If it is not that.
        """
        found = json.loads(text)
        if not isinstance(found, dict) or found.keys() != {"algorithm", "compressor", "gamma"}:
            raise ValueError(f"received {text!r:.100}, expected an algorithm, a compressor and gamma")
        return cls(str(found["algorithm"]), named_compressor(found["compressor"]), float(found["gamma"]))
