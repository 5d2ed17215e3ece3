"""How many rounds a plan needs: the convergence bounds that plans are chosen by."""

import math
from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Convergence:
    """Rounds of decentralised SGD to a given accuracy.

    `worst_case_rounds` is Koloskova, Loizou, Boreiri, Jaggi, Stich (ICML 2020), Theorem 2, smooth non-convex
    case with gossip in every round (τ = 1) and bounds on noise and heterogeneity that do not grow with the
    gradient (M = P = 0):

    K(ρ) = L·F₀ · (σ² / (n ε²) + (ζ + σ √p) / (p ε^{3/2}) + 1 / (p ε)),  p = 1 − ρ².

    The proof bounds how far the models are apart by its worst case for a given ρ. `rounds` has what it is
    instead, since a plan tells: noise leaves η²σ²·D between the models, gradients that differ in the same
    way in every round η²ζ²·P (`flower_edge.gossip.disagreement`), so that √(σ²D + ζ²P) takes the place of
    (ζ + σ √p) / p:

    K = L·F₀ · (σ² / (n ε²) + √(σ²D + ζ²P) / ε^{3/2} + 1 / ε).

    Both leave out constant factors: they rank plans, they do not count rounds.

    Parameters
    ----------
    accuracy : float, default 0.1
        ε: the mean squared gradient norm at which training ends.
    noise : float, default 1
        σ: standard deviation of a node's stochastic gradient.
    heterogeneity : float, default 0.05
        ζ: root mean square distance of the nodes' own gradients from the mean gradient.
    smoothness : float, default 1
        L·F₀: Lipschitz constant of the gradient, times the loss to lose. Scales K alone.
    """

    accuracy: float = 0.1
    noise: float = 1.0
    heterogeneity: float = 0.05
    smoothness: float = 1.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            positive = field.name in ("accuracy", "smoothness")
            if not math.isfinite(value) or value < 0 or (positive and value == 0):
                raise ValueError(
                    f"{field.name} is {value}, expected a finite number {'above' if positive else 'from'} 0"
                )

    def rounds(self, disagreement: float, persistent_disagreement: float, n: int) -> float:
        """Return K for n nodes whose models stay D and P apart; infinite where those are.

        Raises
        ------
        ValueError
            If one of them is negative or NaN.
        """
        for name, value in (("disagreement", disagreement), ("persistent", persistent_disagreement)):
            if not value >= 0:
                raise ValueError(f"{name} is {value}, expected zero or more")
        if math.isinf(disagreement) or math.isinf(persistent_disagreement):
            return math.inf
        epsilon = self.accuracy
        apart = math.sqrt(self.noise**2 * disagreement + self.heterogeneity**2 * persistent_disagreement)
        return self.smoothness * (self._local(n) + apart / (math.sqrt(epsilon) * epsilon) + 1 / epsilon)

    def worst_case_rounds(self, rho: float, n: int) -> float:
        """Return K(ρ) for n nodes.

        Raises
        ------
        ValueError
            If `rho` is not in [0, 1).
        """
        if not 0 <= rho < 1:
            raise ValueError(f"rho is {rho}, expected 0 ≤ rho < 1")
        p, epsilon = 1 - rho**2, self.accuracy
        apart = (self.heterogeneity + self.noise * math.sqrt(p)) / (p * math.sqrt(epsilon) * epsilon)
        return self.smoothness * (self._local(n) + apart + 1 / (p * epsilon))

    def _local(self, n: int) -> float:
        return self.noise**2 / (n * self.accuracy**2)
