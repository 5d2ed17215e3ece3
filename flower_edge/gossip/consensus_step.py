"""How far a round of compressed gossip may go: the step size γ."""

import numpy as np
import numpy.typing as npt

from flower_edge.gossip.phase import Phase
from flower_edge.gossip.plan import GossipPlan

Floats = npt.NDArray[np.float64]

CAUTION = 2 / 3
"""What of a compressor's loss counts, as a power. What is left to send is flatter than normally distributed
numbers, so that a message brings less of it; ``benchmarks.consensus_step`` compares the steps that follow
with those of a search."""

_TRIES = 2048


def consensus_step(plan: GossipPlan, contraction: float) -> float:
    r"""Return the step γ of CHOCO-SGD for a plan and a compressor.

    The largest :math:`γ ≤ 1` with

    .. math:: (1 - δ)^{2/3} \max_i \left[(1 + γ L_{ii})^2 + γ^2 \sum_{j ≠ i} W_{ij}^2\right]
       ≤ (1 - γ (1 - ρ))^2, \quad L = I - W.

    On the left, what a round makes of the error of the compressor if it is like noise, the same at all nodes
    and independent between them: :math:`(I + γ L)` acts on it, and 1 − δ of it is left. On the right, what
    the round leaves of the slowest disagreement. So the error falls at least as fast as the models come
    together, and does not hold them up. Koloskova, Stich and Jaggi prove convergence for a far smaller γ,
    about :math:`(1 - ρ)^2 δ` over a constant, against errors that conspire; ours do not.

    Parameters
    ----------
    plan : GossipPlan
        Of several phases, the one that allows least counts, and ρ per round.
    contraction : float
        δ of the compressor, 0 to 1; see `flower_edge.gossip.Codec.contraction`.

    Returns
    -------
    float
        Above 0, at most 1; cut to two digits, so that all nodes have the same.

    Raises
    ------
    ValueError
        If the contraction is not above 0 and at most 1.
    """
    if not 0 < contraction <= 1:
        raise ValueError(f"contraction is {contraction}, expected above 0 and at most 1")
    gammas = np.geomspace(1e-4, 1.0, _TRIES)
    growth = np.max([_growth(phase, plan.n, gammas) for phase in plan.phases], axis=0)
    fits = (1 - contraction) ** CAUTION * growth <= (1 - gammas * (1 - plan.rho)) ** 2
    largest = gammas[fits].max() if fits.any() else gammas[0]
    # Less by a hair, so that a one stays a one.
    digits = 1 - int(np.floor(np.log10(largest)))
    return float(round(np.floor(largest * 10**digits + 1e-6) / 10**digits, digits))


def _growth(phase: Phase, n: int, gammas: Floats) -> Floats:
    """Return the largest growth of noise at any node, for each γ."""
    ends = phase.links.ravel()
    weights = np.repeat(phase.weights, 2)
    own = np.bincount(ends, weights, minlength=n)
    others = np.bincount(ends, weights**2, minlength=n)
    growth: Floats = (1 + gammas[:, None] * own) ** 2 + gammas[:, None] ** 2 * others
    worst: Floats = growth.max(1)
    return worst
