"""Converts an experiment into the arguments and the environment of a vLLM engine; imports no engine.

Unset options are not sent, with two exceptions on the CPU, both shown as effective: the size of the KV cache, because
the engine would claim most of the machine's memory, and the cores of several processes, because the engine can't divide
the cores of a single NUMA node.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from pydantic.types import JsonValue

from lem_domain.backends.vllm import VllmConfig
from lem_domain.states import FailureReason
from lem_domain.wire.workers import DeviceKind
from lem_worker.process.failures import EngineRefused
from lem_worker.process.protocol import RankJob

CPU_KV_CACHE_BYTES = 2**30
"""About 20,000 tokens of a model of the size of SmolLM2-135M in float32."""

_NOT_ENGINE_ARGUMENTS = {
    "num_threads",
    "cpu_omp_threads_bind",
    "presence_penalty",
    "frequency_penalty",
    "logprobs",
}
_ALWAYS = {
    # The engine core runs in this process, so that each step is called and timed here. Workers of several devices are
    # still subprocesses.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}


def options_of(job: RankJob) -> dict[str, JsonValue]:
    """The arguments of `EngineArgs`."""
    config, settings = job.config, settings_of(job)
    options: dict[str, JsonValue] = {
        "model": job.model_path,
        # Without statistics the outputs of a request carry no times.
        "disable_log_stats": False,
        **settings.model_dump(mode="json", exclude_none=True, exclude=_NOT_ENGINE_ARGUMENTS),
    }
    if config.precision != "auto":
        options["dtype"] = config.precision
    if config.model.revision is not None:
        options |= {"revision": config.model.revision, "tokenizer_revision": config.model.revision}
    if config.model.weights == "dummy":
        options["load_format"] = "dummy"
    if on_cpu(job) and settings.kv_cache_memory_bytes is None and settings.gpu_memory_utilization is None:
        options["kv_cache_memory_bytes"] = CPU_KV_CACHE_BYTES
    return options


def environment(job: RankJob) -> None:
    """Set the environment variables that the engine reads, in this process."""
    settings = settings_of(job)
    os.environ.update(_ALWAYS)
    if settings.num_threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(settings.num_threads)
    if (threads := os.environ.get("OMP_NUM_THREADS", "")).isdecimal():
        # Numba, which n-gram speculation uses, would set OpenMP's threads of the whole process to the number of cores.
        os.environ["NUMBA_NUM_THREADS"] = threads
    if on_cpu(job) and in_processes(settings):
        cores = sorted(os.sched_getaffinity(0))
        divided = threads_bind(cores, settings.tensor_parallel_size or 1)
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = settings.cpu_omp_threads_bind or divided


def require_devices(job: RankJob) -> None:
    """Raise EngineRefused when the number of the model's processes differs from that of the leased devices."""
    processes = settings_of(job).tensor_parallel_size or 1
    gpus = sum(device.kind is DeviceKind.GPU for device in job.devices)
    if gpus and processes != gpus:
        raise EngineRefused(
            FailureReason.NOT_AS_REQUESTED,
            f"vllm.tensor_parallel_size {processes} needs as many GPUs and {gpus} are leased; "
            f"set devices.count to {processes}.",
        )
    cores = len(os.sched_getaffinity(0))
    if not gpus and processes > cores:
        raise EngineRefused(
            FailureReason.NOT_AS_REQUESTED,
            f"vllm.tensor_parallel_size {processes} needs as many cores and this worker has {cores}; lower it.",
        )


def threads_bind(cores: Sequence[int], processes: int) -> str:
    """The cores divided among the processes, in the format of `VLLM_CPU_OMP_THREADS_BIND`: `0,1|2,3`."""
    share = len(cores) // processes
    parts = [cores[index * share : (index + 1) * share] for index in range(processes)]
    return "|".join(",".join(str(core) for core in part) for part in parts)


def settings_of(job: RankJob) -> VllmConfig:
    """The job's section."""
    return job.config.section(VllmConfig)


def in_processes(settings: VllmConfig) -> bool:
    """Whether the model runs in subprocesses of the engine."""
    return (settings.tensor_parallel_size or 1) > 1 or settings.distributed_executor_backend == "mp"


def on_cpu(job: RankJob) -> bool:
    """Whether the run leased no accelerator."""
    return not any(device.kind is DeviceKind.GPU for device in job.devices)
