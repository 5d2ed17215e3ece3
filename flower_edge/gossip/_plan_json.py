"""The JSON form of a gossip plan."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from flower_edge.gossip._strict_json import is_int, is_number
from flower_edge.gossip.energy import UnicastEnergy
from flower_edge.gossip.graph import MAX_NODES, Links
from flower_edge.gossip.weights import Weights

FORMAT = "flower_edge.gossip_plan"
VERSION = 1


def encode(n: int, phases: Sequence[tuple[Links, Weights]], energy: UnicastEnergy | None) -> dict[str, Any]:
    """Return the document of a plan without its digest; floats are written so that they read back exactly."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "n": n,
        "energy": None if energy is None else {"model": "unicast", **asdict(energy)},
        "phases": [{"links": links.tolist(), "weights": weights.tolist()} for links, weights in phases],
    }


def decode(document: dict[str, Any]) -> tuple[int, list[tuple[Links, Weights]], UnicastEnergy | None, str]:
    """Return n, phases, energy model and digest of a document; a ValueError says what is wrong with it."""
    if document.get("format") != FORMAT:
        raise ValueError(f"received format {document.get('format')!r:.60}, expected {FORMAT!r}")
    if not is_int(document.get("version")) or document["version"] != VERSION:
        raise ValueError(
            f"received version {document.get('version')!r:.60}, this release reads version {VERSION}"
        )
    expected = {"format", "version", "n", "energy", "phases", "digest"}
    if document.keys() != expected:
        raise ValueError(f"received the fields {sorted(document)!s:.200}, expected {sorted(expected)}")
    phases = document["phases"]
    if not isinstance(phases, list):
        raise ValueError(f"received phases {phases!r:.60}, expected a list")
    return document["n"], [_phase(phase) for phase in phases], _energy(document["energy"]), document["digest"]


def _phase(phase: Any) -> tuple[Links, Weights]:
    if not isinstance(phase, dict) or phase.keys() != {"links", "weights"}:
        raise ValueError(f"received phase {phase!r:.60}, expected {{'links': [[i, j], …], 'weights': […]}}")
    links, weights = phase["links"], phase["weights"]
    if not isinstance(links, list) or not isinstance(weights, list):
        raise ValueError(f"received phase {phase!r:.60}, expected lists of links and weights")
    for link in links:
        if (
            not isinstance(link, list)
            or len(link) != 2
            or not all(is_int(node) and 0 <= node < MAX_NODES for node in link)
        ):
            raise ValueError(f"received link {link!r:.60}, expected two nodes, each 0 to {MAX_NODES - 1}")
    for weight in weights:
        if not is_number(weight):
            raise ValueError(f"received weight {weight!r:.60}, expected a finite number")
    return np.array(links, np.int64).reshape(-1, 2), np.array(weights, np.float64)


def _energy(energy: Any) -> UnicastEnergy | None:
    if energy is None:
        return None
    expected = {"model", "compute", "send", "receive"}
    if not isinstance(energy, dict) or energy.keys() != expected or energy["model"] != "unicast":
        raise ValueError(
            f"received energy {energy!r:.100}, expected null or a unicast model with {sorted(expected)}"
        )
    values = [energy["compute"], energy["send"], energy["receive"]]
    if not all(is_number(value) for value in values):
        raise ValueError(f"received energy {energy!r:.100}, expected finite numbers of Wh")
    return UnicastEnergy(*values)
