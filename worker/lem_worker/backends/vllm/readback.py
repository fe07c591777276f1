"""The effective configuration of a live vLLM engine.

Where possible a value comes from the part that does the work (the scheduler, a worker's tensors, a scheduled request),
not from the engine's copy of its arguments.
"""

from __future__ import annotations

import os
from typing import Any

from pydantic.types import JsonValue
from vllm import SamplingParams

from lem_domain.backends.vllm import VllmConfig
from lem_domain.config.experiment import ExperimentConfig
from lem_domain.wire.runs import EffectiveConfig, EffectiveParameter
from lem_worker.backends.installed import version_of
from lem_worker.backends.readback import compared, compared_keys, of_model, of_revision
from lem_worker.backends.vllm.engine import VllmEngine
from lem_worker.rank.prompts import Request

_EXECUTORS = {"UniProcExecutor": "uni", "MultiprocExecutor": "mp"}
_OFF: dict[str, JsonValue] = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0}
"""Values of sampling parameters that have no effect; shown as null."""


def effective_config(config: ExperimentConfig, live: VllmEngine, sample: Request) -> EffectiveConfig:
    """Every parameter with its requested and effective value."""
    scheduled = _scheduled(live, sample)
    sampling: SamplingParams = scheduled.sampling_params
    return EffectiveConfig(
        engine=f"vllm {_version()}, torch {version_of('torch')}",
        parameters=(*_universal(config, live, scheduled), *_engine(config.section(VllmConfig), live, sampling)),
    )


def _universal(config: ExperimentConfig, live: VllmEngine, scheduled: Any) -> list[EffectiveParameter]:
    sampling: SamplingParams = scheduled.sampling_params
    engine_config: Any = live.engine.vllm_config
    decoding = config.decoding
    weights = "dummy" if engine_config.load_config.load_format == "dummy" else "checkpoint"
    revision = getattr(engine_config.model_config.hf_config, "_commit_hash", None)
    found = [
        *of_model(config, precision=live.workers[0]["dtype"], weights=weights),
        of_revision(config, revision),
        compared("model.adapter", config.model.adapter, _adapter(live, scheduled)),
        compared("device", None, str(engine_config.device_config.device_type)),
        compared("output.mode", config.output.mode, "fixed" if sampling.ignore_eos else "natural"),
        compared("output.max_tokens", config.output.max_tokens, sampling.max_tokens),
        compared("decoding.temperature", decoding.temperature, sampling.temperature),
    ]
    for name, off in _OFF.items():
        value = getattr(sampling, name)
        found.append(compared(f"decoding.{name}", getattr(decoding, name), None if value == off else value))
    return found


def _engine(settings: VllmConfig, live: VllmEngine, sampling: SamplingParams) -> list[EffectiveParameter]:
    engine_config: Any = live.engine.vllm_config
    scheduler, workers = live.core.scheduler, live.workers
    cache = engine_config.cache_config
    compiled = any(worker["compiled"] for worker in workers)
    values: dict[str, JsonValue] = {
        "tensor_parallel_size": len(workers),
        "distributed_executor_backend": _EXECUTORS.get(type(live.core.model_executor).__name__),
        "max_num_seqs": scheduler.max_num_running_reqs,
        "max_num_batched_tokens": scheduler.max_num_scheduled_tokens,
        "max_model_len": scheduler.max_model_len,
        "gpu_memory_utilization": cache.gpu_memory_utilization if cache.kv_cache_memory_bytes is None else None,
        "kv_cache_dtype": cache.cache_dtype,
        "block_size": scheduler.kv_cache_config.kv_cache_groups[0].kv_cache_spec.block_size,
        "enable_prefix_caching": scheduler.kv_cache_manager.enable_caching,
        "enable_chunked_prefill": scheduler.scheduler_config.enable_chunked_prefill,
        "enforce_eager": not compiled,
        # Without compilation the level is 0, whatever the engine's copy of its default is.
        "optimization_level": int(engine_config.optimization_level) if compiled else 0,
        "load_format": engine_config.load_config.load_format,
        "attention_backend": workers[0]["attention_backend"],
        "num_threads": workers[0]["threads"],
        "cpu_omp_threads_bind": _bound(live),
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "logprobs": sampling.logprobs,
    }
    return [*compared_keys("vllm", settings, values), _kv_cache(settings, live), *_speculation(settings, live)]


def _kv_cache(settings: VllmConfig, live: VllmEngine) -> EffectiveParameter:
    """The size of a worker's caches: whole blocks, so up to one block below the requested size."""
    requested = settings.kv_cache_memory_bytes
    config = live.core.scheduler.kv_cache_config
    held = int(live.workers[0]["kv_cache_bytes"])
    block = held // int(config.num_blocks) if config.num_blocks else 0
    return EffectiveParameter(
        name="vllm.kv_cache_memory_bytes",
        requested=requested,
        effective=held,
        confirmed=requested is None or 0 <= requested - held < max(1, block),
    )


def _speculation(settings: VllmConfig, live: VllmEngine) -> list[EffectiveParameter]:
    asked = settings.speculative_config
    worker = live.workers[0]
    least, most = worker["lookup"] or (None, None)
    active = worker["drafter"] is not None
    effective: dict[str, JsonValue] = {
        "method": "ngram" if worker["drafter"] == "NgramProposer" else worker["drafter"],
        "num_speculative_tokens": live.core.scheduler.num_spec_tokens if active else None,
        "prompt_lookup_max": most,
        "prompt_lookup_min": least,
    }
    return compared_keys("vllm.speculative_config", asked, effective) if active or asked is not None else []


def _scheduled(live: VllmEngine, sample: Request) -> Any:
    """A request as the scheduler holds it, added like a measured one and aborted before it runs."""
    live.add(sample, scope="readback")
    request = next(iter(live.core.scheduler.requests.values()))
    live.engine.abort_request([request.request_id], internal=True)
    while live.engine.has_unfinished_requests():
        live.engine.step()
    return request


def _adapter(live: VllmEngine, scheduled: Any) -> str | None:
    """The adapter that a request names, if every worker has loaded it."""
    named = scheduled.lora_request
    if named is None or any(worker["adapters"] != [named.lora_int_id] for worker in live.workers):
        return None
    return str(named.lora_name)


def _bound(live: VllmEngine) -> JsonValue:
    """The cores of each worker subprocess, in the format of `VLLM_CPU_OMP_THREADS_BIND`; None without any."""
    if live.workers[0]["pid"] == os.getpid() or live.engine.vllm_config.device_config.device_type != "cpu":
        return None
    return "|".join(",".join(map(str, worker["cores"])) for worker in live.workers)


def _version() -> str:
    cpu = version_of("vllm-cpu")
    return version_of("vllm") or (f"{cpu} (cpu)" if cpu else "of unknown version")
