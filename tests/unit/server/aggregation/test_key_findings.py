"""What keys of the configuration change about findings and reasons."""

from __future__ import annotations

from typing import Any

import pytest

from factories.evidence import Evidence, simulated
from lem_domain.config.experiment import ExperimentConfig
from lem_domain.results.findings import FindingCode, Severity
from lem_domain.results.run import RunResult
from lem_domain.wire.runs import EffectiveConfig, EffectiveParameter
from lem_server.aggregation.result import aggregate

LIE = EffectiveParameter(name="simulated.batch_size", requested=1, effective=2, confirmed=False)
OTHER = EffectiveParameter(name="simulated.num_processes", requested=1, effective=2, confirmed=False)


def result_of(
    *parameters: EffectiveParameter, summary: dict[str, Any] | None = None, power: bool = True, **config: Any
) -> RunResult:
    made = Evidence(
        config=ExperimentConfig.model_validate({"backend": "simulated", "model": "m", **config}),
        devices=(simulated(),),
        effective_config=EffectiveConfig(engine="simulated", parameters=parameters),
    )
    made.request(0, 1.0, [3.0, 7.0, 13.0])
    if power:
        made.power([0.1 * step for step in range(140)], watts=lambda _: 50.0)
    made.summaries["rank-0"].update(summary or {})
    stored = made.stored()
    return aggregate(stored.inputs, stored.source)


def severity_of(result: RunResult, code: FindingCode) -> Severity | None:
    return next((found.severity for found in result.findings if found.code is code), None)


@pytest.mark.proves("allow", on="server")
@pytest.mark.parametrize(
    ("allow", "severity", "verdict"),
    [
        ([], Severity.ERROR, "invalid"),
        (["simulated.batch_size"], Severity.ERROR, "invalid"),
        (["simulated.batch_size", "simulated.num_processes"], Severity.WARNING, "questionable"),
    ],
)
def test_a_difference_that_is_allowed_is_a_warning(allow: list[str], severity: Severity, verdict: str) -> None:
    result = result_of(LIE, OTHER, allow=allow)
    assert severity_of(result, FindingCode.NOT_AS_REQUESTED) is severity
    assert result.verdict == verdict


@pytest.mark.proves("record.power", on="server")
def test_energy_that_was_not_recorded_says_so_and_is_no_finding() -> None:
    result = result_of(power=False, record={"power": False})
    assert result.energy.total.joules is None
    assert result.energy.total.reason == "record.power is off"
    assert severity_of(result, FindingCode.ENERGY_UNAVAILABLE) is None
    assert result_of(power=False).energy.total.reason != "record.power is off"


@pytest.mark.proves("window.max_duration_s", on="server")
def test_a_window_that_was_cut_is_reported() -> None:
    limit = {"min_duration_s": 1, "max_duration_s": 12}
    assert (
        severity_of(result_of(summary={"window_cut": True}, window=limit), FindingCode.WINDOW_CUT) is Severity.WARNING
    )
    assert severity_of(result_of(summary={"window_cut": False}, window=limit), FindingCode.WINDOW_CUT) is None
    assert severity_of(result_of(window=limit), FindingCode.WINDOW_CUT) is None
