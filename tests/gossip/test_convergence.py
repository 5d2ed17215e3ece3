"""The predicted number of rounds."""

import numpy as np
import pytest

from flower_edge.gossip import Convergence


def test_convergence_against_the_theorem() -> None:
    """K(ρ) by hand: σ = 2, ζ = 3, ε = 0.25, n = 4, p = 0.75."""
    convergence = Convergence(accuracy=0.25, noise=2, heterogeneity=3, smoothness=10)

    expected = 10 * (4 / (4 * 0.0625) + (3 + 2 * 0.75**0.5) / (0.75 * 0.125) + 1 / (0.75 * 0.25))

    assert convergence.rounds(0.5, 4) == pytest.approx(expected)


def test_convergence_grows_with_rho() -> None:
    rounds = [Convergence().rounds(rho, 10) for rho in np.linspace(0, 0.999, 50)]

    assert rounds == sorted(rounds)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"accuracy": 0}, "accuracy is 0, expected a finite number above 0"),
        ({"noise": -1}, "noise is -1"),
        ({"heterogeneity": float("nan")}, "heterogeneity is nan"),
        ({"smoothness": float("inf")}, "smoothness is inf"),
    ],
)
def test_convergence_refuses(values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Convergence(**values)


@pytest.mark.parametrize("rho", [-0.1, 1.0, float("nan")])
def test_rounds_of_what_never_converges(rho: float) -> None:
    with pytest.raises(ValueError, match="expected 0 ≤ rho < 1"):
        Convergence().rounds(rho, 4)
