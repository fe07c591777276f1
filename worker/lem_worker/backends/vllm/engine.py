"""A live vLLM engine: loads it, steps it with the time of every token, and reads its facts."""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pydantic.types import JsonValue
from vllm import EngineArgs, LLMEngine, SamplingParams
from vllm.outputs import RequestOutput
from vllm.sampling_params import RequestOutputKind

from lem_domain.backends.vllm import VllmConfig
from lem_domain.config.experiment import ExperimentConfig
from lem_domain.evidence.streams import PhaseName
from lem_worker.backends.tokenizer import ModelTokens
from lem_worker.backends.vllm import workers
from lem_worker.backends.vllm.adapter import Adapter, adapter_of
from lem_worker.backends.vllm.failures import explained
from lem_worker.process.protocol import RankJob
from lem_worker.rank.prompts import Request
from lem_worker.rank.recorder import FinishReason, Recorder
from lem_worker.rank.request_feed import RequestFeed

_COUNTERS = {
    "steps": "vllm:spec_decode_num_drafts",
    "drafted_tokens": "vllm:spec_decode_num_draft_tokens",
    "accepted_tokens": "vllm:spec_decode_num_accepted_tokens",
    "preemptions": "vllm:num_preemptions",
}
_FINISHES: Mapping[str, FinishReason] = {"stop": "stop", "length": "length"}


class VllmEngine(ModelTokens):
    """A loaded engine with its core in this process."""

    def __init__(self, engine: LLMEngine, job: RankJob, adapter: Adapter | None = None) -> None:
        self.engine = engine
        self.adapter = adapter
        self.core: Any = engine.engine_core.engine_core
        super().__init__(engine.get_tokenizer(), {"the model's context": int(self.core.scheduler.max_model_len)})
        self.workers: list[dict[str, Any]] = engine.collective_rpc(workers.describe)
        """The description of each worker's part of the model."""
        self._config = job.config
        self._counted_before: dict[str, int] = {}
        self._cache_peak = 0.0
        """The largest share of the cache's blocks in use after a step of the last phase."""

    @property
    def max_num_seqs(self) -> int:
        """The most requests of one step."""
        return int(self.core.scheduler.max_num_running_reqs)

    @property
    def vocabulary(self) -> int:
        """Number of tokens of the model."""
        return int(self.engine.vllm_config.model_config.get_vocab_size())

    def add(self, request: Request, *, scope: str) -> None:
        """Add a request to the engine.

        The cache salt keeps the prefix cache from serving one `scope` or repetition from another: prompts are repeated
        to fill the window, which is not the user's traffic.
        """
        prompt = {"prompt_token_ids": list(request.token_ids), "cache_salt": f"{scope}-{request.repetition}"}
        sampling = sampling_params(self._config, request.seed)
        if request.max_tokens is not None:
            sampling.max_tokens, sampling.min_tokens = request.max_tokens, 0
        lora = None if self.adapter is None else self.adapter.request
        self.engine.add_request(str(request.request_id), prompt, sampling, lora_request=lora)

    def serve(self, feed: RequestFeed, recorder: Recorder) -> None:
        """Step until the feed is over and all requests are done.

        The time of a token is the end of the step that returned it to this process.

        Raises:
            RequestFailed: the engine failed a request before the window.
        """
        scope = recorder.phase.value
        if recorder.phase is PhaseName.MEASURE:
            self.engine.collective_rpc(workers.reset_peak_memory)
        self._counted_before, self._cache_peak = self._counted(), 0.0
        cache = self.core.scheduler.kv_cache_manager
        generated: dict[int, list[int]] = {}
        while True:
            for request in feed.take():
                self.add(request, scope=scope)
            if not self.engine.has_unfinished_requests():
                if feed.over:
                    break
                feed.wait()
                continue
            outputs = self.engine.step()
            self._cache_peak = max(self._cache_peak, cache.usage)
            _record(outputs, recorder, generated)
            feed.between_steps()
        if recorder.phase is PhaseName.WARMUP:
            self.engine.reset_prefix_cache()

    def facts(self) -> dict[str, JsonValue]:
        """Facts of the model, its memory, and the last phase."""
        counted = self._counted()
        changed: dict[str, JsonValue] = {
            name: count - self._counted_before.get(name, 0) for name, count in counted.items()
        }
        preemptions = changed.pop("preemptions", None)
        memory = [worker["peak_device_memory_bytes"] for worker in self.engine.collective_rpc(workers.memory)]
        return {
            "model": workers.model_facts(self.engine.vllm_config, self.workers),
            "peak_device_memory_bytes": None if None in memory else max(memory),
            "peak_kv_cache_usage": self._cache_peak,
            "unknown": {"peak_device_memory_bytes": "the model is on the CPU"} if None in memory else {},
            "worker_processes": len(self.workers),
            "kv_cache_bytes": sum(worker["kv_cache_bytes"] for worker in self.workers),
            "preemptions": preemptions,
            # The engine has these counters only where it speculates.
            **({"speculation": changed} if "drafted_tokens" in counted else {}),
        }

    def shut_down(self) -> None:
        """Shut the workers down and free the model."""
        self.engine.engine_core.shutdown()
        del self.engine, self.core
        gc.collect()

    def _counted(self) -> dict[str, int]:
        """The engine's counters since its load."""
        values = {metric.name: metric.value for metric in self.engine.get_metrics() if hasattr(metric, "value")}
        return {name: int(values[metric]) for name, metric in _COUNTERS.items() if metric in values}


def load(job: RankJob, options: Mapping[str, JsonValue]) -> VllmEngine:
    """Load the engine of the job.

    Raises:
        EngineRefused: the load failed, with the reason derived from the engine's message.
    """
    threads = job.config.section(VllmConfig).num_threads
    if threads is not None:
        torch.set_num_threads(threads)  # OpenMP reads the environment only when it is loaded, which may be done
    with explained(job):
        adapter = adapter_of(job)
        extra = {} if adapter is None else adapter.arguments()
        engine = LLMEngine.from_engine_args(EngineArgs(**options, **extra))
        engine.collective_rpc(workers.die_with_parent)
        if adapter is not None:
            adapter.load_into(engine)
        return VllmEngine(engine, job, adapter)


def sampling_params(config: ExperimentConfig, seed: int) -> SamplingParams:
    """The sampling parameters of a request: the length, and the options that the user set.

    No backend decodes text inside the window, so `detokenize` is off.
    """
    decoding, output = config.decoding, config.output
    natural = output.mode == "natural"
    given = {
        **decoding.model_dump(exclude={"seed"}, exclude_none=True),
        **config.section(VllmConfig).model_dump(
            include={"presence_penalty", "frequency_penalty", "logprobs"}, exclude_none=True
        ),
    }
    if decoding.temperature > 0:
        given["seed"] = seed
    if natural and output.min_tokens:
        given["min_tokens"] = output.min_tokens
    return SamplingParams(
        max_tokens=output.max_tokens,
        ignore_eos=not natural,
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
        **given,
    )


def _record(outputs: Sequence[RequestOutput], recorder: Recorder, generated: dict[int, list[int]]) -> None:
    """Record one step; several tokens of a request in it share its time."""
    now_ns = recorder.clock()
    recorded: list[int] = []
    done: list[tuple[int, RequestOutput]] = []
    for output in outputs:
        request_id = int(output.request_id)
        tokens = output.outputs[0].token_ids
        if request_id not in generated:
            generated[request_id] = []
            if output.metrics is not None and output.metrics.scheduled_ts:
                # Seconds of CLOCK_MONOTONIC, the clock of the recorder.
                recorder.scheduled([request_id], round(output.metrics.scheduled_ts * 1e9))
        generated[request_id] += tokens
        recorded += [request_id] * len(tokens)
        if output.finished:
            done.append((request_id, output))
    if recorded:
        recorder.tokens(recorded, now_ns)
    for request_id, output in done:
        finish = output.outputs[0].finish_reason or "nothing"
        reason = _FINISHES.get(finish)
        if reason is None:
            count = len(generated.pop(request_id))
            why = f"the engine ended request {request_id} with {finish!r} after {count} tokens; see the run's log."
            recorder.failed(request_id, why)
            continue
        recorder.finished(request_id, reason, generated.pop(request_id), cached_prompt_tokens=output.num_cached_tokens)
