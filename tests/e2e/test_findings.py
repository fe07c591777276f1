"""What is wrong with a measurement is found in its result, through a real server, worker, rank and sampler, over
simulated devices. `test_gpu_simulated.py` does this for GPUs."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from factories.campaign_files import campaign
from fakes.wall_clock.library import SimulatedWallClock
from lem_domain.results.findings import Finding, Severity
from lem_domain.results.run import RunResult
from lem_domain.states import RunState
from lem_domain.wire.events import RunProgressEvent

TESTS = Path(__file__).parents[1]
QUICK: dict[str, Any] = {
    "backend": "simulated",
    "model": "m",
    "prompts": {"synthetic": {"prompt_tokens": 4, "count": 4}},
    "output": {"max_tokens": 4},
    "warmup": {"enabled": False},
    "baseline": {"enabled": False},
    "energy": {"interval_ms": 10},
}


@pytest.fixture(scope="module")
def wall_clock(tmp_path_factory: pytest.TempPathFactory) -> SimulatedWallClock:
    return SimulatedWallClock(tmp_path_factory.getbasetemp().parent, tmp_path_factory.mktemp("clock") / "seconds")


RANK, SAMPLER = "factories.rank_losing_chunk", "lem_worker.sampler.main"
"""The modules that the worker's processes run."""


@pytest.fixture(scope="module")
def worker(shared_house: Any, wall_clock: SimulatedWallClock) -> psutil.Process:
    """One worker for all of them."""
    started = shared_house.start_worker(
        "simulated",
        program=(sys.executable, "-m", "factories.worker_losing_chunks"),
        environment={**wall_clock.environment(), "PYTHONPATH": str(TESTS)},
    )
    return psutil.Process(started.pid)


def submitted(house: Any, path: Path) -> str:
    done = house.lemctl("submit", path)
    assert done.returncode == 0, done.stderr
    with house.client() as client:
        return str(max(client.campaigns(), key=lambda one: one.created_at).id)


def only_run(house: Any, path: Path) -> Any:
    """The campaign's run, when it is over."""
    name = submitted(house, path)
    with house.client() as client:
        for _ in client.follow_campaign(name):
            pass
        [run] = client.runs(campaign_id=name)
        return run


def result_of_disturbed(house: Any, path: Path, disturb: Callable[[], None]) -> RunResult:
    """What comes of the campaign's run where this is done within its window."""
    name = submitted(house, path)
    with house.client() as client:
        events = client.follow_campaign(name)
        for event in events:
            if isinstance(event, RunProgressEvent) and event.progress.phase == "measure":
                break
        disturb()
        for _ in events:
            pass
        [run] = client.runs(campaign_id=name)
        assert run.state is RunState.COMPLETED, run.message
        result: RunResult = client.aggregate(run.id)
        return result


def found_in(result: RunResult) -> dict[str, Finding]:
    return {finding.code.value: finding for finding in result.findings}


@pytest.mark.finds("not_as_requested", "failed_requests", "output_mismatch", "window_cut", "warmup_not_converged")
@pytest.mark.proves("simulated.failed_share", "simulated.nondeterministic", on="server")
@pytest.mark.usefixtures("worker")
def test_an_engine_that_fails_lies_and_is_not_deterministic_is_found_out(shared_house: Any, tmp_path: Path) -> None:
    run = only_run(
        shared_house,
        campaign(
            tmp_path,
            "engine",
            **QUICK,
            window={"min_duration_s": 0.2, "max_duration_s": 1, "min_requests": 100_000},
            simulated={
                "misreport": ["batch_size"],
                "failed_share": 0.25,
                "nondeterministic": True,
                "decode_ms_per_token": 5,
            },
            allow=["simulated.batch_size"],
        ),
    )
    with shared_house.client() as client:
        result = client.aggregate(run.id)
    found = found_in(result)
    assert set(found) >= {
        "not_as_requested",
        "failed_requests",
        "output_mismatch",
        "window_cut",
        "warmup_not_converged",
    }
    assert found["warmup_not_converged"].severity is Severity.NOTE
    assert result.verdict == "questionable"
    assert result.work.failed_requests == result.work.requests // 4 > 0
    assert "simulated.failed_share" in found["failed_requests"].message
    assert result.work.generated_tokens == 4 * (result.work.requests - result.work.failed_requests)
    assert result.energy.total.joules == pytest.approx(100 * result.window.duration_s, rel=0.05)


@pytest.mark.finds("batch_not_reached", "outputs_cut")
@pytest.mark.usefixtures("worker")
def test_a_batch_that_is_too_large_for_the_prompts_and_cut_outputs_are_found(shared_house: Any, tmp_path: Path) -> None:
    large = {**QUICK, "output": {"mode": "natural", "max_tokens": 1}, "simulated": {"batch_size": 8}}
    run = only_run(shared_house, campaign(tmp_path, "large", **large, window={"min_duration_s": 0.2}))
    with shared_house.client() as client:
        result = client.aggregate(run.id)
    found = found_in(result)
    assert found["batch_not_reached"].numbers == {"sequences": 4, "target": 8}
    assert found["outputs_cut"].numbers == {"cut": result.work.requests, "finished": result.work.requests}
    assert result.steady.energy.joules is None


@pytest.mark.proves("window.steady_min_s", on="simulated")
@pytest.mark.usefixtures("worker")
def test_the_steady_state_of_full_batches_is_nearly_the_whole_window(shared_house: Any, tmp_path: Path) -> None:
    full = {**QUICK, "simulated": {"batch_size": 2}, "window": {"min_duration_s": 0.5, "steady_min_s": 0.4}}
    run = only_run(shared_house, campaign(tmp_path, "full", **full))
    with shared_house.client() as client:
        result = client.aggregate(run.id)
    assert result.steady.target_sequences == 2
    assert result.steady.generated_tokens.value == result.work.generated_tokens
    assert result.steady.energy_per_output_token_j.value == pytest.approx(
        result.efficiency.energy_per_output_token_j.value, rel=0.02
    )
    shown = shared_house.lemctl("show", run.id)
    assert "Steady state" in shown.stdout


@pytest.mark.finds("compiled_in_window")
def test_what_an_engine_compiles_inside_its_window_is_found(shared_house: Any, tmp_path: Path) -> None:
    shared_house.start_worker(
        "pytorch",
        "late",
        program=(sys.executable, "-m", "factories.worker_compiling_late"),
        environment={"PYTHONPATH": str(TESTS)},
    )
    late = {
        **QUICK,
        "backend": "pytorch",
        "model": "builtin:tiny-llama",
        "record": {"power": False},
        "window": {"min_duration_s": 0.1},
        "pytorch": {"num_threads": 1, "torch_compile": {"backend": "eager"}},
    }
    run = only_run(shared_house, campaign(tmp_path, "late", **late))
    with shared_house.client() as client:
        found = found_in(client.aggregate(run.id))
    assert found["compiled_in_window"].severity is Severity.WARNING
    assert found["compiled_in_window"].numbers["rank-0.graphs"] >= 1


@pytest.mark.finds("low_overlap")
@pytest.mark.usefixtures("worker")
def test_ranks_with_unequal_work_are_found_to_work_alone(shared_house: Any, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("short\n" + "long " * 400 + "\n")
    unequal = {**QUICK, "prompts": {"file": "prompts.txt"}}
    simulated = {"num_processes": 2, "prefill_ms_per_token": 3}
    path = campaign(tmp_path, "unequal", **unequal, window={"min_duration_s": 0.2}, simulated=simulated)
    run = only_run(shared_house, path)
    with shared_house.client() as client:
        result = client.aggregate(run.id)
    assert result.window.processes == 2
    assert result.window.duration_s >= 1.2
    assert result.window.overlap < 0.5
    assert "low_overlap" in found_in(result)
    # Every check is told: of all, overlap alone did not pass, and both ranks told their engine.
    assert [one.name.value for one in result.checks if not one.passed] == ["windows_overlap"]
    assert result.checks[-1].detail == "2 ran simulated"


@pytest.mark.finds("missing_evidence", "short_window")
@pytest.mark.usefixtures("worker")
def test_what_is_left_of_a_window_is_said_to_be_partial_and_short(shared_house: Any, tmp_path: Path) -> None:
    # A chunk of requests holds about a second of them.
    path = campaign(
        tmp_path,
        "partial",
        **{**QUICK, "model": "loses-requests"},
        window={"min_duration_s": 2},
        traffic={"mode": "open", "rate_per_s": 2000, "arrivals": "constant"},
        simulated={"batch_size": 4096, "decode_ms_per_token": 0, "prefill_ms_per_token": 0},
        record={"tokens": False},
    )
    run = only_run(shared_house, path)
    assert (run.state, run.reason) == (RunState.FAILED, "invalid_evidence")
    with shared_house.client() as client:
        result = client.aggregate(run.id, allow_partial=True)
    found = found_in(result)
    assert {"missing_evidence", "short_window"} <= set(found)
    assert result.verdict == "invalid"
    assert "chunk" in found["missing_evidence"].message
    assert result.window.duration_s < 1.9
    assert found["short_window"].numbers["min_duration_s"] == 2


@pytest.mark.finds("late_arrivals", "sampling_gaps", "sampler_overload", "clock_jump")
def test_a_machine_that_stops_and_whose_clock_is_set_is_found_out(
    shared_house: Any, worker: psutil.Process, wall_clock: SimulatedWallClock, tmp_path: Path
) -> None:
    path = campaign(
        tmp_path,
        "disturbed",
        **QUICK,
        window={"min_duration_s": 4},
        traffic={"mode": "open", "rate_per_s": 100, "arrivals": "constant"},
        simulated={"batch_size": 64, "decode_ms_per_token": 0, "prefill_ms_per_token": 0},
    )

    def disturb() -> None:
        wall_clock.jump(3600)
        for _ in range(3):
            with stopped(worker, (RANK, SAMPLER)):
                time.sleep(0.4)

    result = result_of_disturbed(shared_house, path, disturb)
    found = found_in(result)
    assert {"late_arrivals", "sampling_gaps", "sampler_overload", "clock_jump"} <= set(found)
    assert found["clock_jump"].numbers["jump_s"] == pytest.approx(3600, abs=1)
    assert found["late_arrivals"].numbers["latest_ms"] > 300
    # The counter kept counting, so the figure is right all the same.
    assert result.energy.total.joules == pytest.approx(100 * result.window.duration_s, rel=0.02)


@pytest.mark.finds("late_arrivals")
def test_a_machine_that_stops_while_a_trace_is_replayed_is_found_out(
    shared_house: Any, worker: psutil.Process, tmp_path: Path
) -> None:
    (tmp_path / "arrivals.txt").write_text("".join(f"{number / 100}\n" for number in range(1, 301)))
    path = campaign(
        tmp_path,
        "replayed",
        **QUICK,
        window={"min_duration_s": 2},
        traffic={"mode": "open", "arrivals": "trace", "trace_file": "arrivals.txt"},
        simulated={"batch_size": 64, "decode_ms_per_token": 0, "prefill_ms_per_token": 0},
    )

    def disturb() -> None:
        with stopped(worker, (RANK,)):
            time.sleep(0.5)

    found = found_in(result_of_disturbed(shared_house, path, disturb))
    assert found["late_arrivals"].numbers["latest_ms"] > 300
    assert "trace" in found["late_arrivals"].message


@contextmanager
def stopped(worker: psutil.Process, modules: Sequence[str]) -> Iterator[None]:
    """Stop the processes of a worker that run these modules, as a machine does that has other things to do."""
    chosen = [one for one in worker.children(recursive=True) if set(one.cmdline()) & set(modules)]
    assert len(chosen) == len(modules)
    for process in chosen:
        os.kill(process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for process in chosen:
            os.kill(process.pid, signal.SIGCONT)
