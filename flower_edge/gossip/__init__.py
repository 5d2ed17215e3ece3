"""Gossip learning without a server: graphs, mixing plans, and one node's side of the exchange.

A node needs numpy alone to load a `GossipPlan` and to mix. Making a plan needs the extra ``topology``.
"""

from flower_edge.gossip.bilevel import full_graph_plan, optimize
from flower_edge.gossip.choco import ChocoSGD
from flower_edge.gossip.choco_copies import ChocoCopies
from flower_edge.gossip.choice import Candidate, Choice
from flower_edge.gossip.codec import ArraySpec, Layout
from flower_edge.gossip.compressed import CompressedMixer, DeepSqueeze, PlainQuantised
from flower_edge.gossip.compressor import BFloat16, Codec, CodecError, Compressor, Float32
from flower_edge.gossip.consensus_step import consensus_step
from flower_edge.gossip.contraction import asymptotic_contraction, contraction
from flower_edge.gossip.convergence import Convergence
from flower_edge.gossip.delta import TapDelta
from flower_edge.gossip.disagreement import (
    cyclic_disagreement,
    disagreement,
    least_disagreement,
    persistent_disagreement,
)
from flower_edge.gossip.energy import BroadcastEnergy, EnergyModel, UnicastEnergy, aggregator_energy
from flower_edge.gossip.fastest import Fastest, fastest, fastest_symmetric
from flower_edge.gossip.finite_time import base_k, finite_time, one_peer_exponential
from flower_edge.gossip.graph import (
    complete,
    geometric,
    link_array,
    load_graph,
    regular,
    ring,
    save_graph,
    torus,
)
from flower_edge.gossip.learned import learned_cycle
from flower_edge.gossip.link_choco import LinkChoco
from flower_edge.gossip.matcha import Matcha, matcha
from flower_edge.gossip.matchings import cyclic_matchings, matchings, random_matchings, with_pauses
from flower_edge.gossip.mixer import DPSGD, Doubt, Mixer
from flower_edge.gossip.node_rows import NodeRows
from flower_edge.gossip.phase import Phase
from flower_edge.gossip.plan import GossipPlan
from flower_edge.gossip.quantise import Int4, Int8
from flower_edge.gossip.radio import WAVELAN_2MBIT, PacketEnergy, Radio, RadioEnergy
from flower_edge.gossip.rationed import rationed_schedule
from flower_edge.gossip.regular_graphs import RegularGraph, ramanujan
from flower_edge.gossip.robust import ClippedGossip, TrimmedMean
from flower_edge.gossip.sparse import SignNorm, TopK
from flower_edge.gossip.sparsify import Pruned, choose_links, prune
from flower_edge.gossip.transmissions import Transmissions, expected_transmissions
from flower_edge.gossip.weights import metropolis_hastings, mixing_matrix

__all__ = [
    "DPSGD",
    "WAVELAN_2MBIT",
    "ArraySpec",
    "BFloat16",
    "BroadcastEnergy",
    "Candidate",
    "ChocoCopies",
    "ChocoSGD",
    "Choice",
    "ClippedGossip",
    "Codec",
    "CodecError",
    "CompressedMixer",
    "Compressor",
    "Convergence",
    "DeepSqueeze",
    "Doubt",
    "EnergyModel",
    "Fastest",
    "Float32",
    "GossipPlan",
    "Int4",
    "Int8",
    "Layout",
    "LinkChoco",
    "Matcha",
    "Mixer",
    "NodeRows",
    "PacketEnergy",
    "Phase",
    "PlainQuantised",
    "Pruned",
    "Radio",
    "RadioEnergy",
    "RegularGraph",
    "SignNorm",
    "TapDelta",
    "TopK",
    "Transmissions",
    "TrimmedMean",
    "UnicastEnergy",
    "aggregator_energy",
    "asymptotic_contraction",
    "base_k",
    "choose_links",
    "complete",
    "consensus_step",
    "contraction",
    "cyclic_disagreement",
    "cyclic_matchings",
    "disagreement",
    "expected_transmissions",
    "fastest",
    "fastest_symmetric",
    "finite_time",
    "full_graph_plan",
    "geometric",
    "learned_cycle",
    "least_disagreement",
    "link_array",
    "load_graph",
    "matcha",
    "matchings",
    "metropolis_hastings",
    "mixing_matrix",
    "one_peer_exponential",
    "optimize",
    "persistent_disagreement",
    "prune",
    "ramanujan",
    "random_matchings",
    "rationed_schedule",
    "regular",
    "ring",
    "save_graph",
    "torus",
    "with_pauses",
]
