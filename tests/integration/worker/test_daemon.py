"""The daemon with its beat process against a FakeServer over HTTP, with fake ranks in real processes."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from starlette.responses import Response

from factories.fake_daemon import FAKES, killed_worker, nothing_lives_of, spooled, until
from factories.fake_server import FakeServer, problem
from lem_domain.evidence.streams import SAMPLER, StreamName
from lem_domain.states import FailureReason
from lem_domain.wire.workers import Assignment, ClaimRequest
from lem_worker import server_api
from lem_worker.daemon import daemon
from lem_worker.daemon.daemon import Daemon
from lem_worker.daemon.identity import StateInUse
from lem_worker.daemon.settings import WorkerSettings
from lem_worker.server_api import NotAllowed

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("worker_environment")]

Work = Callable[..., Coroutine[Any, Any, None]]


# --- what goes well ---------------------------------------------------------------------------------------------------


async def test_a_run_is_measured_sent_and_completed(server: FakeServer, work: Work, state: Path) -> None:
    attempt = server.enqueue(simulated={"num_processes": 2}, devices={"count": 2})
    await work(devices=2, name="bench")
    processes = {"rank-0", "rank-1", SAMPLER}
    assert set(server.completed[attempt].processes) == processes
    assert {process for _, process in server.markers} == processes
    assert {(process, stream) for _, process, stream, _ in server.chunks} == {
        *((rank, stream) for rank in ("rank-0", "rank-1") for stream in ("phases", "requests")),
        (SAMPLER, "power"),
    }
    assert server.markers[attempt, "rank-1"].summary == {"requests": 4}
    assert server.log_of(attempt, "rank-1").splitlines() == ["rank-1 loads m"]
    assert server.started[attempt].effective_config.engine == "fake 1"
    environment: dict[str, Any] = server.started[attempt].environment
    assert "packages" in environment
    assert environment["prompts"]["sent"] == 4
    assert environment["seeds"]["decoding.seed"] == 0
    assert server.ended == {}
    assert spooled(state) == []
    told = server.paths("workers$|claims|:start|:complete|:sign_off")
    verbs = [path.rpartition("/")[2].rpartition(":")[2] for path in told]
    assert verbs == ["workers", "claims", "start", "complete", "claims", "sign_off"]
    [registered] = server.registered
    assert registered.name == "bench"
    assert [device.uuid for device in registered.devices] == list(server.claims[0].devices)


async def test_no_rank_sends_before_the_server_knows_that_the_window_opens(server: FakeServer, work: Work) -> None:
    server.enqueue()
    await work()
    order = server.paths(":start|streams/requests")
    assert order[0].endswith(":start")
    assert len(set(order)) == 2


async def test_heartbeats_carry_what_is_held_and_how_far_it_is(
    server: FakeServer, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LEM_TEST_RANK", "hang")
    attempt = server.enqueue(limits={"silence_s": 60})

    def half_done() -> bool:
        progress = [one.progress for beat in server.beats for one in beat.attempts if one.attempt_id == attempt]
        return any(one is not None and one.phase == "measure" and one.fraction == 0.5 for one in progress)

    running = asyncio.create_task(work())
    await asyncio.to_thread(server.wait_until, half_done)
    server.verdict = "cancel"
    await running


async def test_the_same_worker_keeps_its_identity_and_gets_a_new_boot(server: FakeServer, work: Work) -> None:
    await work()
    await work()
    first, second = server.registered
    assert first.id == second.id
    assert first.devices == second.devices
    assert first.boot_id != second.boot_id


async def test_two_workers_can_not_share_a_state_folder(server: FakeServer, state: Path) -> None:
    settings = WorkerSettings(backend="simulated", server=server.url, state_dir=state)  # type: ignore[arg-type]
    held = Daemon(settings)
    with pytest.raises(StateInUse, match="--state-dir"):
        Daemon(settings)
    del held


async def test_max_runs_ends_the_worker(server: FakeServer, work: Work) -> None:
    server.enqueue()
    server.enqueue()
    await work(max_runs=1)
    assert len(server.completed) == 1
    assert len(server.queue) == 1


async def test_a_sampler_that_dies_costs_the_energy_and_not_the_run(
    server: FakeServer, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LEM_TEST_SAMPLER", "die")
    attempt = server.enqueue()
    await work()
    assert attempt in server.completed
    marker = server.markers[attempt, SAMPLER]
    assert marker.summary == {"failed": "the sampler ended with exit code 9"}
    assert [one.rows for one in marker.streams] == [1]


@pytest.mark.slow
@pytest.mark.proves("baseline.enabled", "baseline.ttl_s", on="worker")
async def test_baselines_are_taken_as_asked_and_an_idle_one_serves_again(server: FakeServer, work: Work) -> None:
    short = {"min_s": 1, "max_s": 20}
    wanted: list[dict[str, Any]] = [short, short, {**short, "ttl_s": 0}, {"enabled": False}]
    first, again, anew, none = (server.enqueue(baseline=one) for one in wanted)
    await work(modules=FAKES._replace(sampler="lem_worker.sampler.main"))

    def taken(attempt: str) -> list[str]:
        """The contexts of what was measured, and of what an earlier attempt's stands for."""
        ended = [row for row in server.rows(attempt, SAMPLER, StreamName.PHASES) if row["edge"] == "end"]
        reused = [row for row in server.rows(attempt, SAMPLER, StreamName.EVENTS) if row["kind"] == "baseline_reused"]
        contexts = [json.loads(row["detail"]) for row in ended if row["phase"] == "baseline"]
        return [one["context"] for one in contexts] + [
            f"reused {json.loads(row['detail'])['context']}" for row in reused
        ]

    assert taken(first) == taken(anew) == ["idle", "ready", "ready_after"]
    assert taken(none) == []
    assert taken(again) == ["ready", "ready_after", "reused idle"]


# --- what fails in the run --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("act", "reason", "says"),
    [
        ("die_measuring", FailureReason.INFERENCE, "rank-0 ended with exit code 3 during measure(.|\n)*last words"),
        ("die_loading", FailureReason.BACKEND_INITIALISATION, "was killed by SIGSEGV during load(.|\n)*loads m"),
        ("fail_loading", FailureReason.OUT_OF_MEMORY, "the model needs 9 GB"),
        ("babble", FailureReason.BACKEND_INITIALISATION, "rank-0 sent an invalid message"),
    ],
)
async def test_a_rank_that_fails_ends_the_attempt_with_its_reason(
    server: FakeServer, work: Work, monkeypatch: pytest.MonkeyPatch, act: str, reason: FailureReason, says: str
) -> None:
    monkeypatch.setenv("LEM_TEST_RANK", act)
    attempt = server.enqueue()
    await work()
    end = server.ended[attempt]
    assert (end.outcome, end.reason) == ("failed", reason)
    with pytest.raises(AssertionError, match=says):
        raise AssertionError(end.message)
    assert "rank-0 loads m" in server.log_of(attempt, "rank-0")
    assert await nothing_lives_of(attempt)


async def test_evidence_of_a_failed_attempt_is_sent(
    server: FakeServer, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LEM_TEST_RANK", "die_measuring")
    attempt = server.enqueue()
    await work()
    assert (attempt, "rank-0", "requests", 0) in server.chunks


async def test_a_parameter_of_any_rank_that_is_not_in_force_ends_the_attempt_before_the_window(
    server: FakeServer, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LEM_TEST_RANK", "disobey")
    attempt = server.enqueue(simulated={"num_processes": 2})
    await work()
    end = server.ended[attempt]
    assert end.reason is FailureReason.NOT_AS_REQUESTED
    assert "simulated.batch_size was requested as 8" in end.message
    assert end.effective_config is not None
    assert server.started == {}


async def test_a_silent_rank_is_killed_with_all_its_children(
    server: FakeServer, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LEM_TEST_RANK", "hang")
    attempt = server.enqueue(limits={"silence_s": 0.5})
    await work()
    assert server.ended[attempt].reason is FailureReason.SILENT
    assert "limits.silence_s" in server.ended[attempt].message
    assert await nothing_lives_of(attempt)


async def test_an_attempt_past_its_time_is_ended(
    server: FakeServer, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LEM_TEST_RANK", "hang")
    attempt = server.enqueue(limits={"run_s": 3})
    await work()
    assert server.ended[attempt].reason is FailureReason.TIMEOUT
    assert "run_s" in server.ended[attempt].message


async def test_after_three_failures_of_the_machine_nothing_is_claimed_for_a_while(
    server: FakeServer, work: Work, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(daemon, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setenv("LEM_TEST_RANK", "die_loading")
    for _ in range(4):
        server.enqueue()
    with caplog.at_level(logging.ERROR, "lem_worker.daemon.daemon"):
        await work()
    told = [record.getMessage() for record in caplog.records if "claiming nothing" in record.getMessage()]
    assert [text.split()[0] for text in told] == ["3", "4"]
    assert "claiming nothing for 0 s" in told[0] and "rank-0 was killed by SIGSEGV during load" in told[0]


@pytest.mark.parametrize(
    ("endings", "pauses"),
    [
        pytest.param("die die die result die die", 1, marks=pytest.mark.slow),
        ("die die result die die die die", 2),
        pytest.param("die missing_model missing_dataset die missing_model", 0, marks=pytest.mark.slow),
        ("die die missing_model die result", 1),
        pytest.param("long_prompt long_prompt long_prompt long_prompt", 0, marks=pytest.mark.slow),
    ],
)
async def test_only_the_machine_opens_the_circuit_breaker_and_only_a_result_closes_it(
    server: FakeServer,
    work: Work,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    endings: str,
    pauses: int,
) -> None:
    monkeypatch.setattr(daemon, "FIRST_PAUSE_S", 0.01)
    server.fail("GET .*/datasets/", lambda: problem(404, "not_found"))
    monkeypatch.setenv("LEM_TEST_RANK", "as_told")
    attempts = {}
    for ending in endings.split():
        match ending:
            case "missing_model":
                config: dict[str, Any] = {"backend": "pytorch", "model": "/nowhere"}
            case "missing_dataset":
                config = {"prompts": {"dataset": "0" * 64}}
            case "long_prompt":
                config = {"model": "long_prompt"}
            case _:
                config = {"model": {"die": "die_loading", "result": "measure"}[ending]}
        attempts[server.enqueue(**config)] = ending
    with caplog.at_level(logging.ERROR, "lem_worker.daemon.daemon"):
        await work()
    told = [record for record in caplog.records if "claiming nothing" in record.getMessage()]
    assert len(told) == pauses
    for attempt, ending in attempts.items():
        assert (attempt in server.completed) is (ending == "result")
    assert all(server.ended[one].reason is FailureReason.BACKEND_INITIALISATION for one in server.ended)


# --- what comes from outside ------------------------------------------------------------------------------------------


async def test_a_cancel_reaches_a_busy_run_and_kills_it(
    server: FakeServer, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LEM_TEST_RANK", "hang")
    attempt = server.enqueue()
    running = asyncio.create_task(work())
    await asyncio.to_thread(server.wait_until, lambda: attempt in server.started)
    server.verdict = "cancel"
    await running
    assert server.ended[attempt].outcome == "cancelled"
    assert server.ended[attempt].reason is FailureReason.USER_CANCELLED
    assert await nothing_lives_of(attempt)


async def test_a_cancel_that_comes_when_the_window_opens_is_a_cancel(server: FakeServer, work: Work) -> None:
    attempt = server.enqueue()
    server.fail(":start", lambda: problem(409, "conflict"))
    await work()
    assert server.ended[attempt].outcome == "cancelled"


async def test_a_pause_stops_the_run_and_hands_it_back(
    server: FakeServer, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LEM_TEST_RANK", "hang")
    attempt = server.enqueue()
    running = asyncio.create_task(work())
    await asyncio.to_thread(server.wait_until, lambda: attempt in server.started)
    server.verdict = "pause"
    await running
    end = server.ended[attempt]
    assert (end.outcome, end.reason) == ("interrupted", FailureReason.USER_PAUSED)
    assert await nothing_lives_of(attempt)


async def test_a_pause_when_all_is_measured_completes_the_run(server: FakeServer, work: Work) -> None:
    attempt = server.enqueue()
    server.fail("completion", lambda: Response(status_code=503))
    running = asyncio.create_task(work())
    await asyncio.to_thread(server.wait_until, lambda: bool(server.paths("completion")))
    server.verdict = "pause"
    told = len(server.beats) + 2
    await asyncio.to_thread(server.wait_until, lambda: len(server.beats) >= told)
    server.heal()
    await running
    assert attempt in server.completed
    assert server.ended == {}


async def test_a_lost_lease_stops_everything_and_nothing_more_is_sent(
    server: FakeServer, work: Work, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LEM_TEST_RANK", "hang")
    attempt = server.enqueue()
    running = asyncio.create_task(work())
    await asyncio.to_thread(server.wait_until, lambda: attempt in server.started)
    server.verdict = "lost"
    await running
    assert server.ended == server.completed == {}
    assert spooled(state) == []
    assert await nothing_lives_of(attempt)


async def test_a_write_that_is_fenced_off_stops_the_attempt(server: FakeServer, work: Work, state: Path) -> None:
    attempt = server.enqueue()
    server.fail("PUT .*chunks", lambda: problem(409, "lease_lost"))
    await work()
    assert server.ended == server.completed == {}
    assert spooled(state) == []
    assert await nothing_lives_of(attempt)


async def test_out_of_touch_the_worker_stops_and_asks_the_server_when_it_is_back(
    server: FakeServer, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LEM_TEST_RANK", "hang")
    attempt = server.enqueue()
    running = asyncio.create_task(work())
    await asyncio.to_thread(server.wait_until, lambda: attempt in server.started)
    server.lease_s = 2.0  # only now: on a busy machine, starting takes longer than that
    told = len(server.beats)
    await asyncio.to_thread(server.wait_until, lambda: len(server.beats) > told + 1)
    server.fail("heartbeat", lambda: Response(status_code=503))
    await running
    assert (server.ended[attempt].outcome, server.ended[attempt].reason) == ("interrupted", FailureReason.WORKER_LOST)
    assert await nothing_lives_of(attempt)


async def test_sigterm_hands_the_run_back(server: FakeServer, work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEM_TEST_RANK", "hang")
    attempt = server.enqueue()
    running = asyncio.create_task(work())
    await asyncio.to_thread(server.wait_until, lambda: attempt in server.started)
    os.kill(os.getpid(), signal.SIGTERM)
    await running
    assert server.ended[attempt].outcome == "interrupted"
    assert server.ended[attempt].reason is FailureReason.WORKER_SHUTDOWN
    assert server.paths(":sign_off")
    assert await nothing_lives_of(attempt)


async def test_sigterm_when_all_is_measured_completes_the_run(server: FakeServer, work: Work) -> None:
    attempt = server.enqueue()
    server.fail("completion", lambda: Response(status_code=503))
    running = asyncio.create_task(work())
    await asyncio.to_thread(server.wait_until, lambda: bool(server.paths("completion")))
    os.kill(os.getpid(), signal.SIGTERM)
    server.heal()
    await running
    assert attempt in server.completed
    assert server.ended == {}


async def test_a_second_sigterm_ends_at_once_and_the_next_start_completes_what_was_whole(
    server: FakeServer, work: Work, state: Path
) -> None:
    attempt = server.enqueue()
    server.fail("completion", lambda: Response(status_code=503))
    running = asyncio.create_task(work())
    await asyncio.to_thread(server.wait_until, lambda: bool(server.paths("completion")))
    os.kill(os.getpid(), signal.SIGTERM)
    seen = len(server.paths("completion")) + 2
    await asyncio.to_thread(server.wait_until, lambda: len(server.paths("completion")) >= seen)
    assert not running.done()
    os.kill(os.getpid(), signal.SIGTERM)
    await running
    assert spooled(state) == [attempt]
    server.heal()
    await work()
    assert attempt in server.completed


async def test_sigterm_while_it_waits_for_work_ends_the_worker_and_signs_off(server: FakeServer, work: Work) -> None:
    server.enqueue()
    server.hold_claims = True
    running = asyncio.create_task(work(until_idle=False))
    await until(lambda: bool(server.claims))
    os.kill(os.getpid(), signal.SIGTERM)
    await running  # what the server had granted meanwhile, it takes back at the sign-off
    assert server.paths(":sign_off")
    assert server.started == server.ended == {}


async def test_a_run_whose_claim_is_answered_as_sigterm_comes_is_handed_back(
    server: FakeServer, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt = server.enqueue()
    claim = server_api.ServerApi.claim

    async def claimed(api: server_api.ServerApi, request: ClaimRequest) -> Assignment | server_api.NoAssignment | None:
        answer = await claim(api, request)
        os.kill(os.getpid(), signal.SIGTERM)
        return answer

    monkeypatch.setattr(server_api.ServerApi, "claim", claimed)
    await work(until_idle=False)
    assert (server.ended[attempt].outcome, server.ended[attempt].reason) == (
        "interrupted",
        FailureReason.WORKER_SHUTDOWN,
    )
    assert server.started == {}
    assert server.paths(":sign_off")


async def test_a_worker_that_ends_when_idle_is_not_idle_while_a_run_of_its_waits(
    server: FakeServer, work: Work
) -> None:
    server.gaps = 2
    attempt = server.enqueue()
    await work()
    assert list(server.completed) == [attempt]
    assert [claim.wait_s > 0 for claim in server.claims] == [False, True, True, False]


async def test_a_drain_finishes_what_is_held_and_claims_nothing_more(server: FakeServer, work: Work) -> None:
    attempt = server.enqueue()
    server.enqueue()
    server.fail(":start", lambda: Response(status_code=503))
    running = asyncio.create_task(work())
    await asyncio.to_thread(server.wait_until, lambda: bool(server.paths(":start")))
    server.drain = True
    drained = len(server.beats) + 2
    await asyncio.to_thread(server.wait_until, lambda: len(server.beats) >= drained)
    server.heal()
    await running
    assert list(server.completed) == [attempt]
    assert len(server.queue) == 1
    assert server.paths(":sign_off")


# --- what fails at the server -----------------------------------------------------------------------------------------


async def test_bursts_of_failing_answers_lose_nothing(server: FakeServer, work: Work) -> None:
    attempt = server.enqueue()
    for pattern in ("workers$", "claims", ":start", "chunks", "logs", "completion", ":complete", "heartbeat"):
        server.fail(pattern, lambda: Response(status_code=503, headers={"Retry-After": "0"}), times=3)
    await work()
    assert attempt in server.completed
    assert len(server.paths("heartbeat")) > 3


async def test_a_claim_whose_answer_was_lost_is_sent_again_under_its_id(
    server: FakeServer, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[bytes] = []
    request = server_api.httpx.AsyncClient.request

    async def losing(client: Any, method: str, path: str, **more: Any) -> Any:
        answer = await request(client, method, path, **more)
        if path.endswith("/claims"):
            sent.append(more["content"])
            if len(sent) == 1:
                raise server_api.httpx.ReadError("the connection was cut")
        return answer

    monkeypatch.setattr(server_api.httpx.AsyncClient, "request", losing)
    await work()
    assert sent[0] == sent[1]


async def test_what_the_manifest_lacks_is_reported_and_sent_again(server: FakeServer, work: Work) -> None:
    attempt = server.enqueue()
    missing = [{"process": "rank-0", "stream": "requests", "seqs": [0]}]
    server.fail(":complete", lambda: problem(409, "manifest_incomplete", missing=missing), times=1)
    await work()
    assert attempt in server.completed
    assert len(server.paths(":complete")) == 2


async def test_refused_evidence_ends_the_attempt_and_stays_on_disk(server: FakeServer, work: Work, state: Path) -> None:
    attempt = server.enqueue()
    server.fail("streams/requests", lambda: problem(422, "evidence_invalid"))
    await work()
    end = server.ended[attempt]
    assert (end.outcome, end.reason) == ("failed", FailureReason.INVALID_EVIDENCE)
    assert "it is evidence_invalid" in end.message
    assert spooled(state) == []
    assert list((state / "refused" / attempt).glob("chunks/rank-0/requests/*.chunk"))


@pytest.mark.parametrize(("status", "code"), [(401, "unauthenticated"), (403, "forbidden"), (426, "client_too_old")])
async def test_a_worker_that_is_not_allowed_any_more_ends_and_keeps_its_evidence(
    server: FakeServer, work: Work, state: Path, status: int, code: str
) -> None:
    attempt = server.enqueue()
    server.fail("completion|:end", lambda: problem(status, code))
    with pytest.raises(NotAllowed, match=f"it is {code}"):
        await work()
    assert spooled(state) == [attempt]
    assert await nothing_lives_of(attempt)
    with pytest.raises(NotAllowed):
        await work()
    assert spooled(state) == [attempt]
    server.heal()
    await work()
    assert attempt in server.completed
    assert spooled(state) == []


# --- what a kill leaves -----------------------------------------------------------------------------------------------


async def test_whole_evidence_of_a_killed_worker_is_completed_and_not_measured_again(
    server: FakeServer, work: Work, state: Path
) -> None:
    attempt = server.enqueue()
    server.fail(":complete", lambda: Response(status_code=503))
    await killed_worker(server, state, lambda: bool(server.paths(":complete")))
    assert spooled(state) == [attempt]
    [first] = server.registered
    server.heal()
    await work()
    assert attempt in server.completed
    assert len(server.started) == 1
    assert spooled(state) == []
    sent = server.paths("PUT .*/chunks/")
    assert len(sent) == len(set(sent)) == len(server.chunks)
    completion = next(call for call in reversed(server.calls) if call.path.endswith(":complete"))
    assert completion.boot == str(first.boot_id)
    assert server.calls.index(completion) < max(
        number for number, call in enumerate(server.calls) if call.path == "/api/v1/workers"
    )


async def test_whole_evidence_under_a_superseded_lease_is_dropped(server: FakeServer, work: Work, state: Path) -> None:
    server.enqueue()
    server.fail(":complete", lambda: Response(status_code=503))
    await killed_worker(server, state, lambda: bool(server.paths(":complete")))
    server.heal()
    server.fail("completion", lambda: problem(409, "lease_lost"))
    await work()
    assert server.completed == {}
    assert spooled(state) == []


async def test_chunks_that_the_server_lost_are_sent_again_after_a_restart(
    server: FakeServer, work: Work, state: Path
) -> None:
    attempt = server.enqueue()
    server.fail(":complete", lambda: Response(status_code=503))
    await killed_worker(server, state, lambda: bool(server.paths(":complete")))
    server.heal()
    lost = [key for key in server.chunks if key[1] == SAMPLER]
    for key in lost:
        del server.chunks[key]
    await work()
    assert attempt in server.completed
    assert lost and all(key in server.chunks for key in lost)


@pytest.mark.parametrize("cut", ["assignment.json", "rank-0.done.json"])
async def test_an_attempt_whose_files_were_cut_short_counts_as_unfinished(
    server: FakeServer, work: Work, state: Path, cut: str
) -> None:
    attempt = server.enqueue()
    server.fail(":complete", lambda: Response(status_code=503))
    await killed_worker(server, state, lambda: bool(server.paths(":complete")))
    os.truncate(state / "spool" / attempt / cut, 0)
    (state / "spool" / attempt / ".assignment.json.77").write_bytes(b"{")
    server.heal()
    await work()
    assert server.completed == server.ended == {}
    assert len(server.registered) == 2
    assert spooled(state) == []


async def test_half_an_attempt_of_a_killed_worker_is_cleaned_up(
    server: FakeServer,
    work: Work,
    state: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("LEM_TEST_RANK", "hang")
    attempt = server.enqueue()

    def escaped() -> bool:
        return any(one.progress and one.progress.fraction == 0.5 for beat in server.beats for one in beat.attempts)

    await killed_worker(server, state, escaped)
    assert spooled(state) == [attempt]
    with caplog.at_level(logging.WARNING, "lem_worker.daemon.recovery"):
        await work()
    # The rank died with its daemon; its child had left the group and was not told.
    assert "killed 1 processes" in caplog.text
    assert await nothing_lives_of(attempt)
    assert spooled(state) == []
    assert server.completed == server.ended == {}


# --- what the daemon is made of ---------------------------------------------------------------------------------------


async def test_the_daemon_imports_no_engine_and_the_heartbeat_not_even_arrow() -> None:
    code = """
import sys
import lem_worker.heartbeat.sender
heavy = {"pyarrow", "numpy", "pydantic_settings"} & set(sys.modules)
import lem_worker.main
print(sorted(heavy | {"torch", "transformers", "accelerate", "codecarbon"} & set(sys.modules)))
"""
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE)
    printed, _ = await process.communicate()
    assert printed == b"[]\n"
