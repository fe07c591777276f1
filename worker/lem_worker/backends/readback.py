"""Compares what a configuration requests with what the loaded engine reports."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import BaseModel
from pydantic.types import JsonValue

from lem_domain.config.experiment import ExperimentConfig
from lem_domain.wire.runs import EffectiveParameter


def compared(name: str, requested: JsonValue, effective: JsonValue) -> EffectiveParameter:
    """A parameter with both values; confirmed if they are equal, or if none was requested."""
    confirmed = requested is None or requested == effective
    return EffectiveParameter(name=name, requested=requested, effective=effective, confirmed=confirmed)


def compared_keys(
    section: str, wanted: BaseModel | None, effective: Mapping[str, JsonValue]
) -> list[EffectiveParameter]:
    """The keys of a section that `effective` has, each with its value in `wanted`; None requests nothing."""
    requested = {} if wanted is None else wanted.model_dump(mode="json")
    return [compared(f"{section}.{name}", requested.get(name), value) for name, value in effective.items()]


def of_model(config: ExperimentConfig, *, precision: JsonValue, weights: str) -> list[EffectiveParameter]:
    """The parameters of the loaded weights."""
    return [
        compared("precision", None if config.precision == "auto" else config.precision, precision),
        compared("model.weights", config.model.weights, weights),
    ]


def of_revision(config: ExperimentConfig, commit: str | None) -> EffectiveParameter:
    """`model.revision`. A branch or tag can't be compared with its commit; the proof is that the hub resolved it."""
    wanted = config.model.revision
    confirmed = wanted is None or commit is not None
    return EffectiveParameter(name="model.revision", requested=wanted, effective=commit, confirmed=confirmed)
