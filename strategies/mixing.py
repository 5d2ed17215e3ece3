"""Which algorithm mixes the models of a hosted gossip."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

from flower_edge.gossip.choco import ChocoSGD
from flower_edge.gossip.codec import Layout
from flower_edge.gossip.compressed import CompressedMixer
from flower_edge.gossip.compression import ALGORITHMS, Compression, default_algorithm, to_named
from flower_edge.gossip.compressor import Compressor
from flower_edge.gossip.directed import DirectedPlan
from flower_edge.gossip.link_choco import LinkChoco
from flower_edge.gossip.mixer import DPSGD, Mixer
from flower_edge.gossip.plan import GossipPlan
from flower_edge.gossip.push_sum import PushSum

MakeMixer: TypeAlias = Callable[..., Mixer[Any]]


def choose_mixer(
    plan: GossipPlan | DirectedPlan,
    mixer: MakeMixer | None,
    compressor: Compressor | None,
    *,
    in_parts: bool,
) -> MakeMixer:
    """Return what makes a node's mixer, after trying it.

    Parameters
    ----------
    plan : GossipPlan
        Who mixes with whom.
    mixer : callable, optional
        As the user gave it: takes a node's index, and with a compressor also ``plan``, ``codec`` and
        ``start``.
    compressor : Compressor, optional
        How messages become bytes.
    in_parts : bool
        Whether it has to mix models in parts.

    Raises
    ------
    ValueError
        If mixer and compressor do not go together, or with the plan, or it cannot mix in parts.
    """
    if isinstance(plan, DirectedPlan):
        if mixer is not None or compressor is not None or in_parts:
            raise ValueError(
                "the plan is directed, and only PushSum mixes by such plans: leave out mixer, compressor and "
                "mix_untrained"
            )
        return partial(PushSum, plan=plan)
    if mixer is None:
        mixer = DPSGD if compressor is None else ChocoSGD if len(plan.phases) == 1 else LinkChoco
    arguments: dict[str, Any] = {}
    if compressor is not None:
        arguments = {"plan": plan, "codec": compressor.codec(1), "start": None}
    try:
        tried = mixer(0, **arguments)
    except TypeError as error:
        given, hint = "its index alone", "give a compressor, too, such as Int8(), if it compresses"
        if compressor is not None:
            given, hint = "its index, plan, codec and start", "with a compressor, use ChocoSGD, for example"
        raise ValueError(f"mixer {mixer!r:.100} makes no mixer from {given} ({error}); {hint}") from error
    if in_parts and not tried.separable:
        raise ValueError(
            f"{type(tried).__name__} mixes models as a whole; mix_untrained=False needs a mixer that "
            "is `separable`, such as DPSGD"
        )
    return mixer


def mixer_of_boards(
    plan: GossipPlan, mixer: MakeMixer | None, compressor: Compressor, robust: str | None
) -> MakeMixer:
    """Return what makes a node's mixer between boards, which exchange models in few bytes.

    Raises
    ------
    ValueError
        If boards do not know the mixer or the compressor, or they do not go together, or with the plan.
    """
    if robust is not None:
        raise ValueError(
            f"robust is {robust!r}, with a compressor: robust mixers compare models, which do not travel then"
        )
    to_named(compressor)
    chosen = choose_mixer(
        plan, default_algorithm(plan) if mixer is None else mixer, compressor, in_parts=False
    )
    _tried(plan, chosen, compressor.codec(1).layout, compressor)
    return chosen


def compression_of(plan: GossipPlan, mixer: MakeMixer, layout: Layout, compressor: Compressor) -> Compression:
    """Return what boards are told of a mixer: algorithm, compressor, and γ for this plan and model."""
    tried = _tried(plan, mixer, layout, compressor)
    return Compression(tried.algorithm, compressor, tried.gamma)


def _tried(plan: GossipPlan, mixer: MakeMixer, layout: Layout, compressor: Compressor) -> CompressedMixer:
    tried = mixer(0, plan=plan, codec=compressor.codec(layout), start=None)
    if not isinstance(tried, CompressedMixer) or ALGORITHMS.get(tried.algorithm) is not type(tried):
        known = sorted(kind.__name__ for kind in ALGORITHMS.values())
        raise ValueError(f"boards know the mixers {known}, received {type(tried).__name__}")
    return tried
