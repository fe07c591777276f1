"""Records request and token times: two list entries per step while the engine runs, evidence rows between steps.

A backend calls `scheduled`, `tokens`, and `finished` or `failed`. The code that sends requests calls `release`, and
`drain` while the engine is idle. A request may get several tokens in one step, requests may enter and leave at any
time, and a drain may fall in the middle of a request, so that lockstep, continuous and streaming engines use the same
recorder.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from lem_domain.errors import LemError
from lem_domain.evidence.streams import PhaseName
from lem_worker.process.evidence_rows import Clock, EvidenceRows
from lem_worker.rank.prompts import Request

IntArray = NDArray[np.int64]
FinishReason = Literal["length", "stop"]

_NEVER = 2**63 - 1


class RecordingError(LemError):
    """The token times of a request don't match its tokens."""


class RequestFailed(LemError):
    """A request failed in a phase that records no failures."""


class OutputSink(Protocol):
    """Takes the generated tokens."""

    def add(self, prompt_index: int, token_ids: Sequence[int]) -> None:
        """Take one request's generated token ids."""


class ProgressSink(Protocol):
    """Takes progress updates."""

    def due_ns(self) -> int:
        """The time of the next update, in ns."""

    def report(self, now_ns: int, *, requests_ended: int, generated_tokens: int) -> None:
        """Take the counts so far."""


@dataclass(frozen=True)
class Sinks:
    """The evidence streams of a recorder; `tokens` is None where token times are not recorded."""

    requests: EvidenceRows
    tokens: EvidenceRows | None
    outputs: OutputSink


@dataclass(slots=True)
class _InFlight:
    request: Request
    arrival_ns: int
    released_ns: int | None = None
    scheduled_ns: int | None = None
    batch_id: int | None = None
    first_token_ns: int | None = None
    last_token_ns: int | None = None
    generated: int = 0
    cached_prompt_tokens: int | None = None
    finish_reason: FinishReason | None = None
    token_ids: Sequence[int] = ()
    error: str | None = None


class Recorder:
    """Request and token times of one phase; without sinks it only counts, as in warm-up."""

    def __init__(
        self,
        phase: PhaseName,
        sinks: Sinks | None = None,
        progress: ProgressSink | None = None,
        clock: Clock = time.monotonic_ns,
    ) -> None:
        self.phase = phase
        self.clock = clock
        self.requests_done = 0
        self.requests_failed = 0
        self.prompt_tokens = 0
        self.generated_tokens = 0
        self.last_token_ns = 0
        self.worked_until_ns = 0
        """Time of the last token or the last failed request."""
        self._sinks = sinks
        self._progress = progress
        self._progress_due = progress.due_ns() if progress is not None else _NEVER
        # One entry of each per step. Copies and arithmetic wait for a drain, because they would slow the engine's loop.
        self._steps: list[Sequence[int] | IntArray] = []
        self._times: list[int] = []
        self._undrained = 0
        self._in_flight: dict[int, _InFlight] = {}
        self._ended: list[int] = []

    # --- while the engine runs ----------------------------------------------------------------------------------------

    def release(self, requests: Sequence[Request], time_ns: int, *, released_ns: int | None = None) -> None:
        """Record that requests go to the backend; `time_ns` is their arrival, `released_ns` a late release."""
        for request in requests:
            self._in_flight[request.request_id] = _InFlight(request, time_ns, released_ns)

    def scheduled(self, request_ids: Sequence[int] | IntArray, time_ns: int, batch_id: int | None = None) -> None:
        """Record that the engine starts work on the requests; those of a lockstep batch share a `batch_id`."""
        for request_id in request_ids:
            state = self._in_flight[int(request_id)]
            state.scheduled_ns = time_ns
            state.batch_id = batch_id

    def tokens(self, request_ids: Sequence[int] | IntArray, time_ns: int) -> None:
        """Record one more token at `time_ns` for each listed request.

        A request that got several tokens in one step (speculation) is listed several times, and they share the time.
        The recorder keeps the list, so it must not change afterwards.
        """
        count = len(request_ids)
        self._steps.append(request_ids)
        self._times.append(time_ns)
        self._undrained += count
        self.generated_tokens += count
        self.last_token_ns = self.worked_until_ns = time_ns
        if time_ns >= self._progress_due:
            self._report(time_ns)

    def finished(
        self,
        request_id: int,
        reason: FinishReason,
        token_ids: Sequence[int],
        *,
        cached_prompt_tokens: int | None = None,
    ) -> None:
        """Record that a request is done; `token_ids` are its generated tokens, the end of sequence included."""
        state = self._in_flight[request_id]
        state.finish_reason = reason
        state.token_ids = token_ids
        state.cached_prompt_tokens = cached_prompt_tokens
        self._ended.append(request_id)
        self.requests_done += 1
        self.prompt_tokens += len(state.request.token_ids)

    def failed(self, request_id: int, error: str) -> None:
        """Record that the engine failed one request, for the reason in the sentence `error`, and serves the others.

        Raises:
            RequestFailed: this phase records no requests, so the failure would be lost.
        """
        if self._sinks is None:
            raise RequestFailed(error)
        self._in_flight[request_id].error = error
        self._ended.append(request_id)
        self.requests_failed += 1
        self.worked_until_ns = self.clock()

    # --- between steps ------------------------------------------------------------------------------------------------

    @property
    def requests_ended(self) -> int:
        """Requests that are done or failed."""
        return self.requests_done + self.requests_failed

    @property
    def undrained(self) -> int:
        """Tokens since the last drain."""
        return self._undrained

    def drain(self) -> None:
        """Turn recorded steps and ended requests into evidence rows.

        Raises:
            RecordingError: a finished request has more or fewer token times than tokens.
        """
        self._drain_tokens()
        ended = [self._in_flight.pop(request_id) for request_id in self._ended]
        self._ended.clear()
        done = [state for state in ended if state.error is None]
        for state in done:
            if state.generated != len(state.token_ids):
                raise RecordingError(
                    f"request {state.request.request_id} has {state.generated} token times but "
                    f"{len(state.token_ids)} tokens; this is a bug of the backend's adapter, please report it."
                )
        if self._sinks is None or not ended:
            return
        self._write_requests(ended)
        for state in done:
            self._sinks.outputs.add(state.request.prompt_index, state.token_ids)

    def abandon(self, error: str) -> None:
        """Drain after a failure; requests in flight are written as failed."""
        self.drain()
        unfinished = list(self._in_flight.values())
        self._in_flight.clear()
        for state in unfinished:
            state.error = error
        if self._sinks is not None and unfinished:
            self._write_requests(unfinished)

    def _drain_tokens(self) -> None:
        steps, step_times = self._steps, self._times
        self._steps, self._times, self._undrained = [], [], 0
        if not steps:
            return
        ids = np.concatenate([np.asarray(step, dtype=np.int64) for step in steps])
        times = np.repeat(np.array(step_times, dtype=np.int64), [len(step) for step in steps])
        # Stable, so that the tokens of a request keep their order.
        order = np.argsort(ids, kind="stable")
        ids, times = ids[order], times[order]
        starts = np.flatnonzero(np.diff(ids, prepend=-1))
        counts = np.diff(starts, append=len(ids))
        already = np.empty(len(starts), dtype=np.int64)
        for index, (start, count) in enumerate(zip(starts.tolist(), counts.tolist(), strict=True)):
            state = self._in_flight[int(ids[start])]
            already[index] = state.generated
            if state.first_token_ns is None:
                state.first_token_ns = int(times[start])
            state.last_token_ns = int(times[start + count - 1])
            state.generated += count
        if self._sinks is not None and self._sinks.tokens is not None:
            positions = np.arange(len(ids)) - np.repeat(starts - already, counts)
            self._sinks.tokens.extend(request_id=ids.tolist(), index=positions.tolist(), time_ns=times.tolist())

    def _write_requests(self, states: Sequence[_InFlight]) -> None:
        assert self._sinks is not None  # noqa: S101 - both callers have checked
        self._sinks.requests.extend(
            request_id=[state.request.request_id for state in states],
            prompt_index=[state.request.prompt_index for state in states],
            arrival_ns=[state.arrival_ns for state in states],
            scheduled_ns=[state.scheduled_ns for state in states],
            first_token_ns=[state.first_token_ns for state in states],
            last_token_ns=[state.last_token_ns for state in states],
            prompt_tokens=[len(state.request.token_ids) for state in states],
            cached_prompt_tokens=[state.cached_prompt_tokens for state in states],
            generated_tokens=[state.generated for state in states],
            finish_reason=[state.finish_reason for state in states],
            batch_id=[state.batch_id for state in states],
            error=[state.error for state in states],
            released_ns=[state.released_ns for state in states],
        )

    def _report(self, now_ns: int) -> None:
        if self._progress is not None:
            self._progress.report(now_ns, requests_ended=self.requests_ended, generated_tokens=self.generated_tokens)
            self._progress_due = self._progress.due_ns()
