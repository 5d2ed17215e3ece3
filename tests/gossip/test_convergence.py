"""The predicted number of rounds."""

import numpy as np
import pytest

from flower_edge.gossip import Convergence


def test_the_worst_case_against_the_theorem() -> None:
    """K(ρ) by hand: σ = 2, ζ = 3, ε = 0.25, n = 4, p = 0.75."""
    convergence = Convergence(accuracy=0.25, noise=2, heterogeneity=3, smoothness=10)

    expected = 10 * (4 / (4 * 0.0625) + (3 + 2 * 0.75**0.5) / (0.75 * 0.125) + 1 / (0.75 * 0.25))

    assert convergence.worst_case_rounds(0.5, 4) == pytest.approx(expected)


def test_rounds_by_hand() -> None:
    """σ = 2, ζ = 3, ε = 0.25, n = 4, D = 1, P = 2."""
    convergence = Convergence(accuracy=0.25, noise=2, heterogeneity=3, smoothness=10)

    expected = 10 * (4 / (4 * 0.0625) + (4 * 1 + 9 * 2) ** 0.5 / 0.125 + 1 / 0.25)

    assert convergence.rounds(1.0, 2.0, 4) == pytest.approx(expected)


def test_rounds_grow_with_rho_and_disagreement() -> None:
    worst = [Convergence().worst_case_rounds(rho, 10) for rho in np.linspace(0, 0.999, 50)]
    ours = [Convergence().rounds(d, d, 10) for d in np.linspace(0, 100, 50)]

    assert worst == sorted(worst)
    assert ours == sorted(ours)
    assert Convergence().rounds(float("inf"), 1.0, 10) == float("inf")
    assert Convergence(noise=0.0).rounds(float("inf"), 1.0, 10) == float("inf")
    assert Convergence(heterogeneity=0.0).rounds(1.0, float("inf"), 10) == float("inf")


def test_the_worst_case_is_worse() -> None:
    """D ≤ ρ² / (1 − ρ²) and P ≤ ρ² / (1 − ρ)² for one phase: the theorem's K is never less."""
    for rho in np.linspace(0, 0.99, 30):
        for heterogeneity in (0.0, 0.05, 1.0):
            convergence = Convergence(heterogeneity=heterogeneity)
            d, p = rho**2 / (1 - rho**2), rho**2 / (1 - rho) ** 2
            assert convergence.rounds(d, p, 10) <= 2 * convergence.worst_case_rounds(rho, 10)


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
        Convergence().worst_case_rounds(rho, 4)


def test_disagreement_is_no_less_than_zero() -> None:
    with pytest.raises(ValueError, match="disagreement is nan"):
        Convergence().rounds(float("nan"), 1.0, 4)
