"""Rules between the sections of an experiment (see `lem_domain.config.rules`)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from lem_domain.config.key_paths import key_paths, unknown_path_message
from lem_domain.config.rules import Rule
from lem_domain.config.tensorrt import TensorrtConfig

if TYPE_CHECKING:
    from lem_domain.config.experiment import ExperimentConfig


def _sections_of_others(config: ExperimentConfig) -> str | None:
    others = [name for name in type(config.backend) if name is not config.backend]
    given = [name.value for name in others if getattr(config, name.value) is not None]
    if not given:
        return None
    named = " and ".join(f"section {name!r}" for name in given)
    belongs = "belongs" if len(given) == 1 else "belong"
    return f"{named} {belongs} to another backend than {config.backend.value!r}; remove it or set backend: {given[0]}"


def _allowed_that_is_not_there(config: ExperimentConfig) -> str | None:
    known = key_paths(type(config))
    wrong = [unknown_path_message(name, known) for name in config.allow if name not in known]
    return f"allow: {'; '.join(wrong)}" if wrong else None


def _quality_without_likelihoods(config: ExperimentConfig) -> str | None:
    if not config.quality or config.backend.value == "pytorch":
        return None
    return "quality is measured by the pytorch backend alone; remove it or set backend: pytorch"


def _adapter_that_is_not_put_in(config: ExperimentConfig) -> str | None:
    if config.model.adapter is None or config.backend.value in ("pytorch", "vllm"):
        return None
    return "model.adapter is put into the model by pytorch and vllm alone; remove it or set backend to one of them"


def _power_that_is_needed(config: ExperimentConfig) -> str | None:
    if config.record.power:
        return None
    needing = ", ".join(_needing_power(config))
    return f"record.power is off and {needing} needs it; set it on or remove them" if needing else None


def _needing_power(config: ExperimentConfig) -> Iterator[str]:
    for name, needed in (
        ("energy.required", config.energy.required),
        ("baseline.required", config.baseline.required),
        ("prefill_probe", config.prefill_probe),
        ("carbon", config.carbon is not None),
        ("cost", config.cost is not None),
    ):
        if needed:
            yield name


def _required_baseline_that_is_off(config: ExperimentConfig) -> str | None:
    if config.baseline.enabled or not config.baseline.required:
        return None
    return "baseline.required has no effect where baseline.enabled is off; remove one of them"


def _synthetic_prompts_too_long(config: ExperimentConfig) -> str | None:
    made = config.prompts.synthetic
    if made is None or config.input.truncate != "error":
        return None
    longest = made.prompt_tokens + made.spread
    if longest <= config.input.max_tokens:
        return None
    return (
        f"prompts.synthetic makes prompts of up to {longest} tokens and input.max_tokens is {config.input.max_tokens}; "
        "raise it, or make shorter prompts"
    )


def _concurrency_below_processes(config: ExperimentConfig) -> str | None:
    concurrency = config.traffic.concurrency
    if concurrency is None or concurrency >= config.processes:
        return None
    return (
        f"traffic.concurrency {concurrency} leaves nothing for some of the {config.processes} processes; raise it or "
        "use fewer processes"
    )


def _more_processes_than_gpus(config: ExperimentConfig) -> str | None:
    """Several devices, and one that is named as a GPU, are GPUs: one for each process. A CPU takes several."""
    devices = config.devices
    named_as_gpu = devices.kind == "gpu" or any(uuid.startswith(("GPU-", "MIG-")) for uuid in devices.uuids)
    if devices.count == 1 and not named_as_gpu:
        return None
    backend = config.backend.value
    if backend == "vllm":
        size = (config.vllm and config.vllm.tensor_parallel_size) or 1
        wrong, name = size != devices.count, "vllm.tensor_parallel_size"
    else:
        size = (config.pytorch and config.pytorch.num_processes) or 1
        wrong, name = backend == "pytorch" and size > devices.count, "pytorch.num_processes"
    if not wrong:
        return None
    return f"{name} {size} needs as many GPUs and devices.count leases {devices.count}; set devices.count: {size}"


def _float32_on_tensorrt(config: ExperimentConfig) -> str | None:
    if config.backend.value != "tensorrt" or config.precision != "float32":
        return None
    return "TensorRT-LLM does not run in float32; set precision to float16, bfloat16 or auto"


def _parallel_sizes_of_tensorrt(config: ExperimentConfig) -> str | None:
    settings = config.tensorrt or TensorrtConfig()
    if config.backend.value != "tensorrt" or settings.devices_needed == config.devices.count:
        return None
    return (
        f"tensorrt.tensor_parallel_size {settings.tensor_parallel_size or 1} times "
        f"tensorrt.pipeline_parallel_size {settings.pipeline_parallel_size or 1} works on "
        f"{settings.devices_needed} devices and devices.count leases {config.devices.count}; "
        f"set devices.count: {settings.devices_needed}, or change the parallel sizes"
    )


def _sequences_too_long_for_tensorrt(config: ExperimentConfig) -> str | None:
    limit = config.tensorrt.max_seq_len if config.tensorrt is not None else None
    longest = config.input.max_tokens + config.output.max_tokens
    if config.backend.value != "tensorrt" or limit is None or config.input.truncate == "error" or longest <= limit:
        return None
    return (
        f"input.max_tokens {config.input.max_tokens} and output.max_tokens {config.output.max_tokens} are together "
        f"above tensorrt.max_seq_len {limit}; raise it or lower one of them"
    )


RULES = (
    Rule(("backend", "pytorch", "vllm", "tensorrt", "simulated"), _sections_of_others),
    Rule(("allow",), _allowed_that_is_not_there),
    Rule(("quality", "backend"), _quality_without_likelihoods),
    Rule(("model", "backend"), _adapter_that_is_not_put_in),
    Rule(("record", "energy", "baseline", "prefill_probe", "carbon", "cost"), _power_that_is_needed),
    Rule(("baseline",), _required_baseline_that_is_off),
    Rule(("prompts", "input"), _synthetic_prompts_too_long),
    Rule(("traffic", "pytorch", "simulated", "backend"), _concurrency_below_processes),
    Rule(("backend", "vllm", "pytorch", "devices"), _more_processes_than_gpus),
    Rule(("backend", "precision"), _float32_on_tensorrt),
    Rule(("backend", "tensorrt", "devices"), _parallel_sizes_of_tensorrt),
    Rule(("backend", "tensorrt", "input", "output"), _sequences_too_long_for_tensorrt),
)
