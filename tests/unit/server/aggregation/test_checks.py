"""Every check of the evidence is reported, whether it passed, did not, or could not be made."""

from __future__ import annotations

from dataclasses import replace

import pytest

from factories.evidence import Evidence, gpu
from lem_domain.evidence.streams import StreamName
from lem_domain.results.findings import FindingCode, Severity
from lem_domain.results.run import Check, CheckName, RunResult
from lem_server.aggregation.result import aggregate

ENGINE = "transformers 5.23.0, torch 2.12.1"


def two_ranks(*engines: str | None, end: float = 10.0) -> Evidence:
    made = Evidence(processes=("rank-0", "rank-1", "sampler"), devices=(gpu(0), gpu(1)), chunk_rows=20)
    made.request(0, 0.0, [1.0, 5.0, 12.0])
    made.request(0, 0.0, [1.0, 5.0, end], rank=1)
    for device in range(2):
        made.power([number * 0.1 - 1 for number in range(140)], joules=lambda t: 100 * t + 500, device=device)
    for rank, engine in enumerate(engines):
        made.summaries[f"rank-{rank}"]["engine"] = engine
    made.summaries["sampler"]["devices"] = [
        {"uuid": f"GPU-{index}", "own_processes_listed": True} for index in range(2)
    ]
    return made


def result_of(made: Evidence) -> RunResult:
    stored = made.stored()
    return aggregate(stored.inputs, stored.source)


def check(result: RunResult, name: CheckName) -> Check:
    [found] = [one for one in result.checks if one.name is name]
    return found


def test_all_checks_are_reported_where_all_is_well() -> None:
    result = result_of(two_ranks(ENGINE, ENGINE))
    assert [one.name for one in result.checks] == list(CheckName)
    assert all(one.passed for one in result.checks), result.checks
    assert check(result, CheckName.PROCESSES_PRESENT).detail == "all of rank-0, rank-1, sampler"
    assert check(result, CheckName.ONE_ENGINE_VERSION).detail == f"2 ran {ENGINE}"
    assert check(result, CheckName.WINDOWS_OVERLAP).detail.endswith("83.3% of the window")
    assert not [one for one in result.findings if one.code is FindingCode.NOT_AS_REQUESTED]


def test_ranks_of_other_versions_of_the_engine_are_found() -> None:
    result = result_of(two_ranks(ENGINE, "transformers 5.24.0, torch 2.12.1"))
    assert check(result, CheckName.ONE_ENGINE_VERSION).passed is False
    [finding] = [one for one in result.findings if one.code is FindingCode.NOT_AS_REQUESTED]
    assert finding.severity is Severity.ERROR
    assert "rank-1 ran transformers 5.24.0" in finding.message
    assert finding.numbers == {"engines": 2}
    assert result.verdict == "invalid"


@pytest.mark.parametrize("engines", [(), (ENGINE,), (None, ENGINE)])
def test_an_engine_that_was_not_reported_has_not_passed(engines: tuple[str | None, ...]) -> None:
    result = result_of(two_ranks(*engines))
    found = check(result, CheckName.ONE_ENGINE_VERSION)
    assert found.passed is None
    assert "rank-" in found.detail
    assert not [one for one in result.findings if one.code is FindingCode.NOT_AS_REQUESTED]


def test_a_device_that_was_leased_twice_is_found() -> None:
    made = two_ranks(ENGINE, ENGINE)
    made.devices = (gpu(0), gpu(0))
    result = result_of(made)
    assert check(result, CheckName.DEVICES_DISTINCT) == Check(
        name=CheckName.DEVICES_DISTINCT, passed=False, detail="GPU-0 more than once"
    )
    [finding] = [one for one in result.findings if one.code is FindingCode.NOT_AS_REQUESTED]
    assert (finding.severity, finding.numbers) == (Severity.ERROR, {"devices": 1})


def test_little_overlap_does_not_pass() -> None:
    result = result_of(two_ranks(ENGINE, ENGINE, end=5.5))
    assert check(result, CheckName.WINDOWS_OVERLAP).passed is False
    assert FindingCode.LOW_OVERLAP in {one.code for one in result.findings}


def test_what_partial_evidence_lacks_does_not_pass() -> None:
    stored = two_ranks(ENGINE, ENGINE).stored(allow_partial=True).without("sampler", StreamName.POWER, 0)
    summaries = {name: summary for name, summary in stored.inputs.summaries.items() if name != "rank-1"}
    processes = (*stored.inputs.processes, "rank-2")
    result = aggregate(replace(stored.inputs, summaries=summaries, processes=processes), stored.source)
    assert {one.name: one.passed for one in result.checks} == {
        CheckName.PROCESSES_PRESENT: False,
        CheckName.CHUNKS_CONTIGUOUS: False,
        CheckName.COMPLETION_MARKERS: False,
        CheckName.DIGESTS_WHOLE: True,
        CheckName.WINDOWS_OVERLAP: True,
        CheckName.DEVICES_DISTINCT: True,
        CheckName.ONE_ENGINE_VERSION: None,
        CheckName.NO_FOREIGN_PROCESS: True,
    }
    assert "rank-2" in check(result, CheckName.PROCESSES_PRESENT).detail
    assert check(result, CheckName.CHUNKS_CONTIGUOUS).detail == "without power of sampler: chunks 0"
    assert "the completion marker of rank-1" in check(result, CheckName.COMPLETION_MARKERS).detail
