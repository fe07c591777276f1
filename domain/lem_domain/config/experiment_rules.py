"""Rules between the sections of an experiment; each returns what is wrong and the remedy, or None."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lem_domain.backends.registry import BACKENDS, backend_rules, backend_spec
from lem_domain.config.keys import key_paths, unknown_key_message
from lem_domain.config.model_base import refuse_if

if TYPE_CHECKING:
    from lem_domain.config.experiment import ExperimentConfig


def _sections_of_other_backends(config: ExperimentConfig) -> str | None:
    others = [spec.name for spec in BACKENDS if spec.name != config.backend]
    given = [name for name in others if getattr(config, name) is not None]
    if not given:
        return None
    named = " and ".join(f"section {name!r}" for name in given)
    belongs = "belongs" if len(given) == 1 else "belong"
    return f"{named} {belongs} to another backend than {config.backend.value!r}; remove it or set backend: {given[0]}"


def _unknown_allowed_key(config: ExperimentConfig) -> str | None:
    known = key_paths(type(config))
    wrong = [unknown_key_message(name, known) for name in config.allow if name not in known]
    return f"allow: {'; '.join(wrong)}" if wrong else None


def _quality_without_scoring(config: ExperimentConfig) -> str | None:
    if not config.quality or backend_spec(config.backend).scores_quality:
        return None
    able = " or ".join(spec.name for spec in BACKENDS if spec.scores_quality)
    return f"quality is not measured by backend {config.backend.value!r}; remove it or set backend: {able}"


def _adapter_without_support(config: ExperimentConfig) -> str | None:
    if config.model.adapter is None or backend_spec(config.backend).loads_adapters:
        return None
    able = " or ".join(spec.name for spec in BACKENDS if spec.loads_adapters)
    return f"model.adapter is not supported by backend {config.backend.value!r}; remove it or set backend: {able}"


def _power_needed_but_not_recorded(config: ExperimentConfig) -> str | None:
    if config.record.power:
        return None
    needs = {
        "energy.required": config.energy.required,
        "baseline.required": config.baseline.required,
        "prefill_probe": config.prefill_probe,
        "carbon": config.carbon is not None,
        "cost": config.cost is not None,
    }
    needing = ", ".join(name for name, needed in needs.items() if needed)
    return f"record.power is off and {needing} needs it; set it on or remove them" if needing else None


def _synthetic_prompts_too_long(config: ExperimentConfig) -> str | None:
    made = config.prompts.synthetic
    if made is None or config.input.truncate != "error":
        return None
    longest = made.prompt_tokens + made.spread
    if longest <= config.input.max_tokens:
        return None
    return (
        f"prompts.synthetic generates prompts of up to {longest} tokens and input.max_tokens is "
        f"{config.input.max_tokens}; raise it, or shorten the prompts"
    )


def _concurrency_below_processes(config: ExperimentConfig) -> str | None:
    concurrency = config.traffic.concurrency
    if concurrency is None or concurrency >= config.processes:
        return None
    return (
        f"traffic.concurrency {concurrency} leaves some of the {config.processes} processes without requests; raise it "
        "or use fewer processes"
    )


def _repeat_without_effect(config: ExperimentConfig) -> str | None:
    if config.window.repeat is None:
        return None
    if config.traffic.mode != "offline":
        return f"window.repeat has no effect under traffic.mode {config.traffic.mode}; remove it"
    if backend_spec(config.backend).is_continuous:
        return None
    return f"window.repeat has no effect on backend {config.backend.value!r}, which runs batches in lockstep; remove it"


RULES = (
    _sections_of_other_backends,
    _unknown_allowed_key,
    _quality_without_scoring,
    _adapter_without_support,
    _power_needed_but_not_recorded,
    refuse_if(
        lambda config: config.baseline.required and not config.baseline.enabled,
        "baseline.required has no effect while baseline.enabled is off; remove one of them",
    ),
    _synthetic_prompts_too_long,
    _concurrency_below_processes,
    _repeat_without_effect,
    *backend_rules(),
)
