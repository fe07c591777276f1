"""What a request gives: the published classes, filled by the fake's executor."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Literal


class RequestError(RuntimeError):
    """The engine could not carry out a request."""


@dataclass
class TimingMetrics:
    """On the steady clock, CLOCK_MONOTONIC on Linux."""

    arrival_time: timedelta = timedelta(0)
    first_scheduled_time: timedelta = timedelta(0)
    first_token_time: timedelta = timedelta(0)
    last_token_time: timedelta = timedelta(0)


@dataclass
class KvCacheMetrics:
    num_total_allocated_blocks: int = 0
    num_new_allocated_blocks: int = 0
    num_reused_blocks: int = 0
    num_missed_blocks: int = 0
    kv_cache_hit_rate: float = 0.0


@dataclass
class SpeculativeDecodingMetrics:
    acceptance_rate: float = 0.0
    total_accepted_draft_tokens: int = 0
    total_draft_tokens: int = 0


@dataclass
class RequestPerfMetrics:
    timing_metrics: TimingMetrics = field(default_factory=TimingMetrics)
    kv_cache_metrics: KvCacheMetrics = field(default_factory=KvCacheMetrics)
    speculative_decoding: SpeculativeDecodingMetrics = field(default_factory=SpeculativeDecodingMetrics)
    first_iter: int | None = None
    last_iter: int | None = None
    iter: int | None = None


@dataclass
class CompletionOutput:
    """One answer; `token_ids` grows with every chunk of a stream."""

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    cumulative_logprob: float | None = None
    logprobs: list[Any] = field(default_factory=list)
    prompt_logprobs: list[Any] = field(default_factory=list)
    finish_reason: Literal["stop", "length", "timeout", "cancelled"] | None = None
    stop_reason: int | str | None = None
    generation_logits: Any = None
    disaggregated_params: Any = None
    request_perf_metrics: RequestPerfMetrics | None = None
    _last: int = field(default=0, repr=False)

    @property
    def length(self) -> int:
        return len(self.token_ids)

    @property
    def text_diff(self) -> str:
        return ""

    @property
    def token_ids_diff(self) -> list[int]:
        return self.token_ids[self._last :]


@dataclass(frozen=True)
class Chunk:
    """What the executor sends."""

    token_ids: tuple[int, ...] = ()
    finish_reason: Literal["stop", "length", "timeout"] | None = None
    metrics: RequestPerfMetrics | None = None
    error: str | None = None


class RequestOutput:
    """To be waited for, or to be iterated where it streams and was made inside an event loop."""

    def __init__(self, request_id: int, prompt_token_ids: list[int], *, streaming: bool, abort: Callable[[], None]):
        self.request_id = request_id
        self.prompt: str | None = None
        self.prompt_token_ids = prompt_token_ids
        self.outputs = [CompletionOutput(index=0)]
        self.context_logits = None
        self.finished = False
        self._streaming = streaming
        self._abort = abort
        self._aborted = False
        self._queue: queue.Queue[Chunk] = queue.Queue()
        try:
            self._loop: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
        except RuntimeError:
            self._loop = None
        self._aqueue: asyncio.Queue[Chunk] | None = asyncio.Queue() if self._loop else None

    def put(self, chunk: Chunk) -> None:
        """From the executor's thread."""
        if self._loop is not None and self._aqueue is not None:
            self._loop.call_soon_threadsafe(self._aqueue.put_nowait, chunk)
        else:
            self._queue.put(chunk)

    def result(self, timeout: float | None = None) -> RequestOutput:
        while not self.finished:
            self._take(self._queue.get(timeout=timeout))
        return self

    async def aresult(self) -> RequestOutput:
        while not self.finished:
            self._take(await self._next())
        return self

    def __aiter__(self) -> RequestOutput:
        return self

    async def __anext__(self) -> RequestOutput:
        if not self._streaming:
            raise RuntimeError("this request does not stream")
        if self.finished:
            raise StopAsyncIteration
        self._take(await self._next())
        return self

    def abort(self) -> None:
        self._aborted = True
        self._abort()

    def aborted(self) -> bool:
        return self._aborted

    async def _next(self) -> Chunk:
        if self._aqueue is None:
            raise RuntimeError("this request was made outside of an event loop")
        return await self._aqueue.get()

    def _take(self, chunk: Chunk) -> None:
        if chunk.error is not None:
            raise RequestError(chunk.error)
        output = self.outputs[0]
        output._last = len(output.token_ids)
        output.token_ids = [*output.token_ids, *chunk.token_ids]
        if chunk.finish_reason is not None:
            output.finish_reason = chunk.finish_reason
            output.request_perf_metrics = chunk.metrics
            self.finished = True
