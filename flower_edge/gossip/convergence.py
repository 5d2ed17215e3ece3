"""How many rounds a mixing matrix needs: the convergence bound that plans are chosen by."""

import math
from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Convergence:
    """Rounds of decentralised SGD to a given accuracy, as a function of ρ.

    Koloskova, Loizou, Boreiri, Jaggi, Stich (ICML 2020), Theorem 2, smooth non-convex case with gossip in
    every round (τ = 1) and bounds on noise and heterogeneity that do not grow with the gradient (M = P = 0):

    K(ρ) = L·F₀ · (σ² / (n ε²) + (ζ + σ √p) / (p ε^{3/2}) + 1 / (p ε)),  p = 1 − ρ².

    The bound leaves out constant factors: it ranks plans, it does not count rounds. With little noise, or n
    large, K goes with 1 / p; with much noise and few nodes the first term, which no mixing matrix changes,
    makes fewer links pay more.

    Parameters
    ----------
    accuracy : float, default 0.1
        ε: the mean squared gradient norm at which training ends.
    noise : float, default 1
        σ: standard deviation of a node's stochastic gradient.
    heterogeneity : float, default 1
        ζ: root mean square distance of the nodes' own gradients from the mean gradient.
    smoothness : float, default 1
        L·F₀: Lipschitz constant of the gradient, times the loss to lose. Scales K alone.
    """

    accuracy: float = 0.1
    noise: float = 1.0
    heterogeneity: float = 1.0
    smoothness: float = 1.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            positive = field.name in ("accuracy", "smoothness")
            if not math.isfinite(value) or value < 0 or (positive and value == 0):
                raise ValueError(
                    f"{field.name} is {value}, expected a finite number {'above' if positive else 'from'} 0"
                )

    def rounds(self, rho: float, n: int) -> float:
        """Return K(ρ) for n nodes.

        Raises
        ------
        ValueError
            If `rho` is not in [0, 1).
        """
        if not 0 <= rho < 1:
            raise ValueError(f"rho is {rho}, expected 0 ≤ rho < 1")
        p, epsilon = 1 - rho**2, self.accuracy
        local = self.noise**2 / (n * epsilon**2)
        disagreement = (self.heterogeneity + self.noise * math.sqrt(p)) / (p * math.sqrt(epsilon) * epsilon)
        return self.smoothness * (local + disagreement + 1 / (p * epsilon))
