"""A measurement that is missing is null with a reason, never 0; the verdict follows from the findings."""

from __future__ import annotations

import itertools
import math

import pytest
from pydantic import ValidationError

from lem_domain.results.figures import EnergyFigure, EnergyMethod, Figure
from lem_domain.results.findings import Finding, FindingCode, Severity, verdict_of


def test_a_figure_has_a_value_or_a_reason() -> None:
    assert Figure(value=0.0, unit="J").reason is None
    assert Figure(value=None, unit="J", reason="nothing was sampled").value is None


def test_a_figure_without_a_value_is_refused_without_a_reason() -> None:
    with pytest.raises(ValidationError, match="either a value or a reason"):
        Figure(value=None, unit="J")


def test_a_figure_with_a_value_is_refused_with_a_reason() -> None:
    with pytest.raises(ValidationError, match="either a value or a reason"):
        Figure(value=1.0, unit="J", reason="nothing was sampled")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_figure_is_a_finite_number(value: float) -> None:
    with pytest.raises(ValidationError):
        Figure(value=value, unit="J")


def test_an_energy_has_joules_with_a_method_or_a_reason() -> None:
    assert EnergyFigure(joules=1.0, method=EnergyMethod.COUNTER, bound_j=0.1).reason is None
    assert EnergyFigure(joules=None, reason="no source could be opened").joules is None


def test_an_energy_without_joules_is_refused_without_a_reason() -> None:
    with pytest.raises(ValidationError, match="either a value or a reason"):
        EnergyFigure(joules=None)


def test_an_energy_with_joules_is_refused_with_a_reason() -> None:
    with pytest.raises(ValidationError, match="either a value or a reason"):
        EnergyFigure(joules=1.0, method=EnergyMethod.COUNTER, reason="no source could be opened")


def test_an_energy_with_joules_is_refused_without_its_method() -> None:
    with pytest.raises(ValidationError, match="method"):
        EnergyFigure(joules=1.0)


def test_a_bound_is_not_negative() -> None:
    with pytest.raises(ValidationError):
        EnergyFigure(joules=1.0, method=EnergyMethod.COUNTER, bound_j=-0.1)


def finding(severity: Severity) -> Finding:
    return Finding(code=FindingCode.SHORT_WINDOW, severity=severity, message="the window is short")


@pytest.mark.parametrize("count", range(4))
def test_the_worst_finding_decides_the_verdict(count: int) -> None:
    for severities in itertools.product(Severity, repeat=count):
        verdict = verdict_of(tuple(map(finding, severities)))
        if Severity.ERROR in severities:
            assert verdict == "invalid"
        elif Severity.WARNING in severities:
            assert verdict == "questionable"
        else:
            assert verdict == "valid"
