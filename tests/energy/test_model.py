"""Modelled energy: counts times a table."""

import pytest

from flower_edge.energy import HOROWITZ_45NM, Counts, EnergyModel, EnergyTable

pytestmark = pytest.mark.board


def test_counts_times_the_table() -> None:
    modelled = EnergyModel().of(Counts(multiply_adds=10**9, memory_bytes=8 * 10**6))

    # A giga of 3.7 + 0.9 pJ; a million of 64 bits at 1.3 to 2.6 nJ.
    assert modelled.least == pytest.approx(4.6e-3 + 1.3e-3)
    assert modelled.most == pytest.approx(4.6e-3 + 2.6e-3)
    assert modelled.table is HOROWITZ_45NM
    assert "modelled: Horowitz, 45 nm" in str(modelled)


def test_nothing_costs_nothing() -> None:
    modelled = EnergyModel().of(Counts(0, 0))

    assert modelled.least == modelled.most == 0


def test_bad_figures_are_refused() -> None:
    with pytest.raises(ValueError, match="-1 multiply-adds"):
        Counts(-1, 0)
    with pytest.raises(ValueError, match="the least before the most"):
        EnergyTable("mine", "measured", 1e-12, (2e-10, 1e-10))
    with pytest.raises(ValueError, match="expected finite numbers"):
        EnergyTable("mine", "measured", float("nan"), (1e-10, 2e-10))
