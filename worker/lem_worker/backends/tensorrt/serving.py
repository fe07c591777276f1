"""Streams requests to a TensorRT-LLM engine and records the answers.

The engine batches continuously in its own processes. The time of a token is the arrival of its chunk in this process.
The engine reports afterwards when it began to work on a request, on the same clock: std::chrono::steady_clock, which is
CLOCK_MONOTONIC on Linux.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import numpy as np

from lem_worker.rank.prompts import Request
from lem_worker.rank.recorder import FinishReason, Recorder
from lem_worker.rank.request_feed import RequestFeed

_LONGEST_WAIT_S = 0.25
"""Bounds a wait for chunks, so that evidence is drained also during long answers."""
_FINISHED: dict[str, FinishReason] = {"length": "length", "stop": "stop"}


class EngineStatistics:
    """The engine's own statistics of the requests of one phase."""

    def __init__(self) -> None:
        self.drafted_tokens = 0
        self.accepted_tokens = 0
        self.first_token_lags_ns: list[int] = []
        """Delay of each request's first chunk after the time at which the engine had the token."""


class Serving:
    """One phase of a live engine: `run` returns when the feed is over and all requests are done."""

    def __init__(
        self,
        llm: Any,
        feed: RequestFeed,
        recorder: Recorder,
        *,
        sampling: Callable[[Request], Any],
        scope: str | None,
        statistics: EngineStatistics,
    ) -> None:
        self._llm = llm
        self._intake = feed
        self._recorder = recorder
        self._sampling = sampling
        self._scope = scope
        """Separates the cache entries of this phase from all others; None where the engine reuses no blocks."""
        self._statistics = statistics
        cache = llm.args.kv_cache_config
        # A partially reused block counts like a whole one, so with partial reuse the number of tokens is unknown.
        self._reused_block: int | None = None if cache.enable_partial_reuse else int(cache.tokens_per_block)

    async def run(self) -> None:
        """Serve the feed.

        Raises:
            RequestFailed: the engine failed a request before the window.
        """
        streams: set[asyncio.Task[None]] = set()
        try:
            while True:
                streams.update(asyncio.create_task(self._follow(request)) for request in self._intake.take())
                if not streams:
                    if self._intake.over:
                        return
                    self._intake.wait()
                    continue
                next_s = self._intake.wait_s()
                done, streams = await asyncio.wait(
                    streams,
                    timeout=_LONGEST_WAIT_S if next_s is None else min(next_s, _LONGEST_WAIT_S),
                    return_when=asyncio.FIRST_COMPLETED,
                )
                for stream in done:
                    stream.result()
                self._intake.between_steps()
        finally:
            for stream in streams:
                stream.cancel()
            await asyncio.gather(*streams, return_exceptions=True)

    async def _follow(self, request: Request) -> None:
        clock, recorder, request_id = self._recorder.clock, self._recorder, request.request_id
        handed_ns = clock()
        output = self._llm.generate_async(
            list(request.token_ids), self._sampling(request), streaming=True, **self._salt(request)
        )
        seen, first_ns = 0, 0
        async for chunk in output:
            now_ns = clock()
            count = len(chunk.outputs[0].token_ids)
            if count > seen:  # several under speculation, or where chunks arrived faster than this loop ran
                recorder.tokens((request_id,) * (count - seen), now_ns)
            first_ns = first_ns or now_ns
            seen = count
        answer = output.outputs[0]
        reason = _FINISHED.get(answer.finish_reason)
        if reason is None:
            recorder.failed(
                request_id,
                f"the engine ended request {request_id} after {seen} tokens for the reason {answer.finish_reason!r}; "
                "see the run's log.",
            )
            return
        cached = self._read_metrics(answer.request_perf_metrics, request, handed_ns, first_ns)
        recorder.finished(request_id, reason, list(answer.token_ids), cached_prompt_tokens=cached)

    def _read_metrics(self, metrics: Any, request: Request, handed_ns: int, first_ns: int) -> int | None:
        """Record the engine's metrics of a request; returns the number of its cached prompt tokens."""
        if metrics is None:
            return None
        timing = metrics.timing_metrics
        scheduled_ns = _ns(timing.first_scheduled_time)
        # The engine counts in whole microseconds. A time outside the request is from another clock and is dropped.
        if handed_ns - 1000 <= scheduled_ns <= first_ns:
            self._recorder.scheduled([request.request_id], max(handed_ns, scheduled_ns))
            self._statistics.first_token_lags_ns.append(first_ns - _ns(timing.first_token_time))
        drafts = metrics.speculative_decoding
        self._statistics.drafted_tokens += int(drafts.total_draft_tokens)
        self._statistics.accepted_tokens += int(drafts.total_accepted_draft_tokens)
        reused = int(metrics.kv_cache_metrics.num_reused_blocks)
        if reused == 0:
            return 0
        return None if self._reused_block is None else min(reused * self._reused_block, len(request.token_ids))

    def _salt(self, request: Request) -> dict[str, str]:
        """The cache salt of a request; without it, a repetition would be served from the blocks of the one before."""
        return {} if self._scope is None else {"cache_salt": f"{self._scope} repetition {request.repetition}"}


def median(values: Sequence[int]) -> int | None:
    """The median; None of no values."""
    return int(np.median(values)) if values else None


def _ns(time: timedelta) -> int:
    return time // timedelta(microseconds=1) * 1000
