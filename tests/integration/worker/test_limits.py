"""Every wait has a limit, and what hangs is killed, stubborn or not, before the server or another run hears of it."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from factories.fake_daemon import FAKES, nothing_lives_of
from factories.fake_server import FakeServer
from lem_domain.evidence.streams import SAMPLER
from lem_domain.states import FailureReason
from lem_worker.daemon import supervision

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("worker_environment")]

Work = Callable[..., Coroutine[Any, Any, None]]

REAL_RANK = FAKES._replace(rank="lem_worker.rank.main")
SHORT: dict[str, Any] = {
    "output": {"max_tokens": 4},
    "window": {"min_duration_s": 0, "min_requests": 4},
    "warmup": {"min_requests": 2, "window_size": 2, "max_requests": 3},
}


@pytest.mark.proves(
    "limits.load_s", "limits.warmup_s", "limits.run_s", "limits.silence_s", "simulated.fail.process", on="simulated"
)
@pytest.mark.parametrize(
    ("at", "limits", "reason", "says"),
    [
        ("load", {"load_s": 2}, FailureReason.TIMEOUT, "longer than 2 s (load_s)"),
        ("warmup", {"silence_s": 1}, FailureReason.SILENT, "for 1 s (limits.silence_s)"),
        ("warmup", {"warmup_s": 1}, FailureReason.TIMEOUT, "longer than 1 s (warmup_s)"),
        ("measure", {"silence_s": 1}, FailureReason.SILENT, "for 1 s (limits.silence_s)"),
        ("measure", {"run_s": 5}, FailureReason.TIMEOUT, "longer than 5 s (run_s)"),
    ],
)
async def test_a_hang_in_any_phase_ends_the_run_with_the_limit_that_it_broke(
    server: FakeServer, work: Work, at: str, limits: dict[str, float], reason: FailureReason, says: str
) -> None:
    simulated = {"num_processes": 2, "fail": {"at": at, "how": "hang", "process": 1}}
    attempt = server.enqueue(**SHORT, simulated=simulated, limits=limits)
    await work(modules=REAL_RANK)
    assert (server.ended[attempt].outcome, server.ended[attempt].reason) == ("failed", reason)
    assert says in server.ended[attempt].message
    assert await nothing_lives_of(attempt)


@pytest.mark.parametrize("how", ["raise", "exit", "kill", "hang"])
async def test_a_rank_that_cannot_unload_its_engine_does_not_lose_the_run(
    server: FakeServer, work: Work, how: str
) -> None:
    attempt = server.enqueue(**SHORT, simulated={"fail": {"at": "cleanup", "how": how}})
    await work(modules=REAL_RANK)
    assert attempt in server.completed
    assert server.ended == {}
    assert server.markers[attempt, "rank-0"].summary["requests"] == 4
    assert await nothing_lives_of(attempt)


async def test_a_sampler_that_hangs_costs_its_last_samples_and_not_the_run(
    server: FakeServer, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervision, "SEALING_S", 0.5)
    monkeypatch.setenv("LEM_TEST_SAMPLER", "hang")
    attempt = server.enqueue()
    await work()
    assert attempt in server.completed
    assert server.markers[attempt, SAMPLER].summary == {"failed": "the sampler was killed by SIGKILL"}
    assert [one.rows for one in server.markers[attempt, SAMPLER].streams] == [1]
    assert await nothing_lives_of(attempt)


OPENING = {
    "die_opening": "the sampler was killed by SIGSEGV before its first sample; its log says more",
    "hang_opening": "the sampler opened no energy source in 2 s and was killed; see whether nvidia-smi answers",
}


@pytest.mark.parametrize("how", OPENING)
async def test_a_sampler_that_comes_to_no_sample_costs_the_energy_and_not_the_run(
    server: FakeServer, work: Work, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    if how == "hang_opening":
        monkeypatch.setattr(supervision, "OPENING_S", 2.0)
    monkeypatch.setenv("LEM_TEST_SAMPLER", how)
    attempt = server.enqueue(
        **SHORT, settle={"temperature_c": 30}, baseline={"enabled": True}, limits={"load_s": 600, "run_s": 60}
    )
    await work(modules=REAL_RANK)
    assert attempt in server.completed, server.ended
    assert server.markers[attempt, SAMPLER].summary == {"failed": OPENING[how]}
    assert server.markers[attempt, SAMPLER].streams == ()
    assert await nothing_lives_of(attempt)


@pytest.mark.proves("energy.required", "limits.load_s", on="simulated")
@pytest.mark.parametrize(
    ("how", "reason", "says"),
    [
        ("die_opening", FailureReason.BACKEND_INITIALISATION, "was killed by SIGSEGV before its first sample"),
        ("hang_opening", FailureReason.TIMEOUT, "longer than 2 s (opening the energy sources)"),
    ],
)
async def test_a_sampler_that_comes_to_no_sample_fails_a_run_that_requires_energy(
    server: FakeServer, work: Work, monkeypatch: pytest.MonkeyPatch, how: str, reason: FailureReason, says: str
) -> None:
    monkeypatch.setenv("LEM_TEST_SAMPLER", how)
    limits = {"load_s": 2 if how == "hang_opening" else 600}
    attempt = server.enqueue(**SHORT, energy={"required": True}, limits=limits)
    await work()
    assert (server.ended[attempt].outcome, server.ended[attempt].reason) == ("failed", reason)
    assert says in server.ended[attempt].message
    assert await nothing_lives_of(attempt)


@pytest.mark.proves("baseline.required", on="simulated")
async def test_a_baseline_that_lacks_a_leased_device_is_none_where_baselines_are_required(
    server: FakeServer, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LEM_TEST_SAMPLER", "no_parts")
    attempt = server.enqueue(**SHORT, baseline={"required": True})
    await work()
    message = server.ended[attempt].message
    assert "the power of SIM-" in message
    assert "baseline.required" in message


@pytest.mark.proves("baseline.required", on="simulated")
async def test_a_sampler_that_comes_to_no_sample_fails_a_run_that_requires_baselines(
    server: FakeServer, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LEM_TEST_SAMPLER", "die_opening")
    attempt = server.enqueue(**SHORT, baseline={"required": True})
    await work()
    assert "baseline.required" in server.ended[attempt].message


async def test_what_an_engine_leaves_behind_is_gone_before_the_server_hears_that_the_run_is_over(
    server: FakeServer, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LEM_TEST_RANK", "leave_child")
    attempt = server.enqueue()
    await work()
    assert attempt in server.completed
    assert server.processes_at_the_end == {}
    assert await nothing_lives_of(attempt)
