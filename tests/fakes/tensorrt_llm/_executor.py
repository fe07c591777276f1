"""The fake's engine: a thread that decodes what it holds step by step, with as many requests in flight as it may."""

from __future__ import annotations

import queue
import threading
import time
import zlib
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from ._orders import fail_as_ordered, orders, told
from ._results import Chunk, RequestOutput, RequestPerfMetrics
from ._sampling import SamplingParams

_FOREIGN_CLOCK_S = 1e6


@dataclass
class _Work:
    output: RequestOutput
    prompt: tuple[int, ...]
    sampling: SamplingParams
    salt: str | None
    metrics: RequestPerfMetrics = field(default_factory=RequestPerfMetrics)
    generated: list[int] = field(default_factory=list)
    aborted: bool = False


class Executor:
    """Continuous batching of requests whose answers are known beforehand."""

    def __init__(self, args: Any, vocabulary: int, most_at_once: int) -> None:
        self._args = args
        self._most_at_once = most_at_once
        self._vocabulary = vocabulary
        self._step_s = float(orders().get("step_ms", 1.0)) / 1000
        self._drafts = getattr(args.speculative_config, "max_draft_len", None) or 0
        self._blocks: set[tuple[str | None, tuple[int, ...]]] = set()
        self._arrived: queue.Queue[_Work | None] = queue.Queue()
        self._count = 0
        self._thread = threading.Thread(target=self._run, name="fake-executor", daemon=True)
        self._thread.start()

    def submit(
        self, prompt: list[int], sampling: SamplingParams, *, streaming: bool, salt: str | None
    ) -> RequestOutput:
        self._count += 1
        work: _Work

        def abort() -> None:
            work.aborted = True

        output = RequestOutput(self._count, prompt, streaming=streaming, abort=abort)
        work = _Work(output, tuple(prompt), sampling, salt)
        work.metrics.timing_metrics.arrival_time = _now()
        self._arrived.put(work)
        return output

    def shutdown(self) -> None:
        self._arrived.put(None)
        self._thread.join()
        told("shutdown", self._count)

    def _run(self) -> None:
        waiting: list[_Work] = []
        active: list[_Work] = []
        while True:
            if not active and not waiting:
                first = self._arrived.get()
                if first is None:
                    return
                waiting.append(first)
            while True:
                try:
                    more = self._arrived.get_nowait()
                except queue.Empty:
                    break
                if more is None:
                    return
                waiting.append(more)
            while waiting and len(active) < self._most_at_once:
                active.append(self._admitted(waiting.pop(0)))
            time.sleep(self._step_s)
            active = [work for work in active if self._step(work)]

    def _admitted(self, work: _Work) -> _Work:
        work.metrics.timing_metrics.first_scheduled_time = _now()
        size = int(self._args.kv_cache_config.tokens_per_block)
        cache = work.metrics.kv_cache_metrics
        whole = [work.prompt[: end + size] for end in range(0, len(work.prompt) - size + 1, size)]
        if self._args.kv_cache_config.enable_block_reuse:
            cache.num_reused_blocks = sum((work.salt, block) in self._blocks for block in whole)
            self._blocks.update((work.salt, block) for block in whole)
        told("reused_blocks", cache.num_reused_blocks)
        cache.num_total_allocated_blocks = -(-len(work.prompt) // size)
        cache.num_new_allocated_blocks = cache.num_total_allocated_blocks - cache.num_reused_blocks
        return work

    def _step(self, work: _Work) -> bool:
        """Whether the request goes on."""
        try:
            fail_as_ordered("generate", self._count)
        except RuntimeError as error:
            work.output.put(Chunk(error=str(error)))
            return False
        tokens = [self._token(work)]
        for _ in range(self._drafts):
            work.metrics.speculative_decoding.total_draft_tokens += 1
            if not _ends(work, tokens) and (len(work.generated) + len(tokens)) % 3:
                tokens.append(self._token(work, len(tokens)))
                work.metrics.speculative_decoding.total_accepted_draft_tokens += 1
        tokens = _until_end(work, tokens)
        work.generated += tokens
        timing = work.metrics.timing_metrics
        if timing.first_token_time == timedelta(0):
            timing.first_token_time = _now()
        reason: Any = "timeout" if work.output.request_id in orders().get("time_out", ()) else _ends(work, [])
        if reason is None and not work.aborted:
            work.output.put(Chunk(tuple(tokens)))
            return True
        timing.last_token_time = _now()
        wanted = work.sampling.return_perf_metrics or self._args.return_perf_metrics
        work.output.put(Chunk(tuple(tokens), reason or "stop", work.metrics if wanted else None))
        return False

    def _token(self, work: _Work, ahead: int = 0) -> int:
        place = len(work.generated) + ahead
        seed = None if work.sampling.is_greedy else work.sampling.seed
        state = zlib.crc32(repr((work.prompt, seed)).encode())
        end = work.sampling.end_id
        if place == 3 + state % 8 and end is not None and end >= 0:
            return end
        token = (state + 7919 * place) % self._vocabulary
        return token if token != end else (token + 1) % self._vocabulary


def _until_end(work: _Work, tokens: list[int]) -> list[int]:
    kept: list[int] = []
    for token in tokens:
        kept.append(token)
        if _ends(work, kept) is not None:
            break
    return kept


def _ends(work: _Work, more: list[int]) -> Any:
    sampling = work.sampling
    generated = [*work.generated, *more]
    may_end = generated and not sampling.ignore_eos and len(generated) >= (sampling.min_tokens or 0)
    if may_end and generated[-1] in (sampling.end_id, *(sampling.stop_token_ids or ())):
        return "stop"
    return "length" if len(generated) >= sampling.max_tokens else None


def _now() -> timedelta:
    foreign = _FOREIGN_CLOCK_S if orders().get("clock") == "foreign" else 0.0
    return timedelta(microseconds=time.monotonic_ns() // 1000, seconds=foreign)
