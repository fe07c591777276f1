"""A live vLLM engine: loading it, stepping it with the time of every token, and what it says of itself."""

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
from lem_worker.backends.vllm import adapter as vllm_adapter
from lem_worker.backends.vllm import failures as vllm_failures
from lem_worker.backends.vllm import workers as vllm_workers
from lem_worker.backends.vllm.adapter import Adapter
from lem_worker.process.protocol import RankJob
from lem_worker.rank.prompt_tokens import check_context, text_of, token_ids
from lem_worker.rank.prompts import PreparedPrompt, Request
from lem_worker.rank.recorder import FinishReason, Recorder
from lem_worker.rank.request_feed import RequestFeed
from lem_worker.rank.synthetic_prompts import ordinary_ids

_COUNTERS = {
    "steps": "vllm:spec_decode_num_drafts",
    "drafted_tokens": "vllm:spec_decode_num_draft_tokens",
    "accepted_tokens": "vllm:spec_decode_num_accepted_tokens",
    "preemptions": "vllm:num_preemptions",
}
_FINISHES: Mapping[str, FinishReason] = {"stop": "stop", "length": "length"}


class LiveEngine:
    """An engine that is loaded, with its core in this process."""

    def __init__(self, engine: LLMEngine, job: RankJob, adapter: Adapter | None = None) -> None:
        self.engine = engine
        self.adapter = adapter
        self.core: Any = engine.engine_core.engine_core
        self.tokenizer: Any = engine.get_tokenizer()
        self.workers: list[dict[str, Any]] = engine.collective_rpc(vllm_workers.describe)
        """What each worker says of the part of the model that it holds."""
        self._config = job.config
        self._counted_before: dict[str, int] = {}
        self._cache_peak = 0.0
        """The greatest share of the cache's blocks that was in use after a step of the last phase."""

    @property
    def max_num_seqs(self) -> int:
        """The most requests of a step."""
        return int(self.core.scheduler.max_num_running_reqs)

    @property
    def max_model_len(self) -> int:
        """The longest request, prompt and answer together."""
        return int(self.core.scheduler.max_model_len)

    def token_ids(self, text: str, *, chat_template: bool) -> list[int]:
        """The prompt's tokens by the engine's tokenizer."""
        return token_ids(self.tokenizer, text, chat_template=chat_template)

    def ordinary_ids(self) -> list[int]:
        """Every token that stands for text."""
        return ordinary_ids(self.tokenizer, int(self.engine.vllm_config.model_config.get_vocab_size()))

    def text(self, tokens: Sequence[int]) -> str:
        """Without special tokens."""
        return text_of(self.tokenizer, tokens)

    def check_context(self, prompt: PreparedPrompt, max_tokens: int) -> None:
        """Raises PromptRefused when prompt and answer are longer than the engine takes."""
        check_context(prompt, max_tokens, self.max_model_len)

    def add(self, request: Request, *, scope: str) -> None:
        """Hand a request over. The prefix cache keeps what it knows of one `scope` from the others: that the prompts
        are sent again to fill a window is not the user's traffic."""
        prompt = {"prompt_token_ids": list(request.token_ids), "cache_salt": f"{scope}-{request.repetition}"}
        sampling = sampling_params(self._config, request.seed)
        if request.max_tokens is not None:
            sampling.max_tokens, sampling.min_tokens = request.max_tokens, 0
        lora = None if self.adapter is None else self.adapter.request
        self.engine.add_request(str(request.request_id), prompt, sampling, lora_request=lora)

    def serve(self, feed: RequestFeed, recorder: Recorder) -> None:
        """Step until the feed is over and all is done.

        A token's time is the end of the step that gave it, when the engine's caller has it.

        Raises:
            RequestFailed: the engine gave a request up before the window.
        """
        scope = recorder.phase.value
        if recorder.phase is PhaseName.MEASURE:
            self.engine.collective_rpc(vllm_workers.reset_peak_memory)
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
        """Of the model, its memory, and the last phase."""
        counted = self._counted()
        changed: dict[str, JsonValue] = {
            name: count - self._counted_before.get(name, 0) for name, count in counted.items()
        }
        preemptions = changed.pop("preemptions", None)
        memory = [worker["peak_device_memory_bytes"] for worker in self.engine.collective_rpc(vllm_workers.memory)]
        return {
            "model": vllm_workers.model_facts(self.engine.vllm_config, self.workers),
            "peak_device_memory_bytes": None if None in memory else max(memory),
            "peak_kv_cache_usage": self._cache_peak,
            "unknown": {"peak_device_memory_bytes": "the model is on the CPU"} if None in memory else {},
            "worker_processes": len(self.workers),
            "kv_cache_bytes": sum(worker["kv_cache_bytes"] for worker in self.workers),
            "preemptions": preemptions,
            # Present where the engine speculates at all.
            **({"speculation": changed} if "drafted_tokens" in counted else {}),
        }

    def shut_down(self) -> None:
        """End the workers and free the model."""
        self.engine.engine_core.shutdown()
        del self.engine, self.core
        gc.collect()

    def _counted(self) -> dict[str, int]:
        """The engine's counters since it was loaded, those that it has."""
        values = {metric.name: metric.value for metric in self.engine.get_metrics() if hasattr(metric, "value")}
        return {name: int(values[metric]) for name, metric in _COUNTERS.items() if metric in values}


def load(job: RankJob, options: Mapping[str, JsonValue]) -> LiveEngine:
    """The engine of the job.

    Raises:
        EngineRefused: with the reason that the engine's own words tell.
    """
    threads = job.config.section(VllmConfig).num_threads
    if threads is not None:
        torch.set_num_threads(threads)  # what the environment says counts only for an OpenMP that is not loaded yet
    with vllm_failures.explained(job):
        adapter = vllm_adapter.of(job)
        room = {} if adapter is None else adapter.arguments()
        engine = LLMEngine.from_engine_args(EngineArgs(**options, **room))
        engine.collective_rpc(vllm_workers.die_with_parent)
        if adapter is not None:
            adapter.put_into(engine)
        return LiveEngine(engine, job, adapter)


def sampling_params(config: ExperimentConfig, seed: int) -> SamplingParams:
    """What a request is sent with; only what the user set, and the length.

    Text is not made from tokens inside the window: no backend does that there.
    """
    decoding, output = config.decoding, config.output
    natural = output.mode == "natural"
    given: dict[str, Any] = {
        "temperature": decoding.temperature,
        "top_k": decoding.top_k,
        "top_p": decoding.top_p,
        "min_p": decoding.min_p,
        "repetition_penalty": decoding.repetition_penalty,
        "seed": seed if decoding.temperature > 0 else None,
        "min_tokens": output.min_tokens if natural and output.min_tokens else None,
    }
    settings = config.section(VllmConfig)
    for name in ("presence_penalty", "frequency_penalty", "logprobs"):
        given[name] = getattr(settings, name)
    return SamplingParams(
        max_tokens=output.max_tokens,
        ignore_eos=not natural,
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
        **{name: value for name, value in given.items() if value is not None},
    )


def _record(outputs: Sequence[RequestOutput], recorder: Recorder, generated: dict[int, list[int]]) -> None:
    """Tell the recorder of one step; several tokens of a request in it share its time."""
    now_ns = recorder.clock()
    recorded: list[int] = []
    done: list[tuple[int, RequestOutput]] = []
    for output in outputs:
        request_id = int(output.request_id)
        tokens = output.outputs[0].token_ids
        if request_id not in generated:
            generated[request_id] = []
            if output.metrics is not None and output.metrics.scheduled_ts:
                # CLOCK_MONOTONIC in seconds, as everywhere in this process.
                recorder.scheduled([request_id], round(output.metrics.scheduled_ts * 1e9))
        generated[request_id] += tokens
        recorded += [request_id] * len(tokens)
        if output.finished:
            done.append((request_id, output))
    if recorded:
        recorder.tokens(recorded, now_ns)
    for request_id, output in done:
        said = output.outputs[0].finish_reason or "nothing"
        reason = _FINISHES.get(said)
        if reason is None:
            count = len(generated.pop(request_id))
            why = f"the engine ended request {request_id} with {said!r} after {count} tokens; its log says why."
            recorder.failed(request_id, why)
            continue
        recorder.finished(request_id, reason, generated.pop(request_id), cached_prompt_tokens=output.num_cached_tokens)
