"""Where each value of a resolved experiment came from."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from enum import StrEnum
from typing import NamedTuple

from pydantic import BaseModel, Field
from pydantic.types import JsonValue

from lem_domain.config.experiment import ExperimentConfig
from lem_domain.config.model_base import ConfigModel


class Source(StrEnum):
    """Who set a value; an earlier one goes before a later one."""

    COMMAND_LINE = "command_line"
    SWEEP = "sweep"
    """The campaign varies it: its sweep, or its list of experiments."""
    FILE = "file"
    PRESET = "preset"
    REQUEST = "request"
    """The body that was submitted, which says no more."""
    DEFAULT = "default"


class Origin(ConfigModel):
    """Where a value was set, as its client says."""

    source: Source
    detail: str = Field(default="", max_length=1000, description="File and line, name of a preset, or option.")


class ResolvedValue(NamedTuple):
    """One value of an experiment."""

    path: str
    value: JsonValue
    source: Source
    detail: str


def resolved_values(
    config: ExperimentConfig, *, varied: Collection[str], origins: Mapping[str, Origin]
) -> Iterator[ResolvedValue]:
    """Every value of a configuration with its origin.

    `origins` are those of the base by dotted path, those of axes by `sweep.` and their path, and that of the list of
    `experiments`. What stands above a value set it only where it is no default: `model: x` says nothing of a revision.
    """
    for path, value, default in _leaves(config, ""):
        axis = next((one for one in varied if path == one or path.startswith(f"{one}.")), None)
        if axis is not None:
            swept = origins.get(f"sweep.{axis}") or origins.get("experiments")
            yield ResolvedValue(path, value, Source.SWEEP, swept.detail if swept else "")
            continue
        origin = origins.get(path)
        if origin is None and value != default:
            origin = _nearest(path, origins)
        if origin is not None:
            yield ResolvedValue(path, value, origin.source, origin.detail)
        else:
            yield ResolvedValue(path, value, Source.DEFAULT if value == default else Source.REQUEST, "")


def _nearest(path: str, origins: Mapping[str, Origin]) -> Origin | None:
    while path:
        if path in origins:
            return origins[path]
        path = path.rpartition(".")[0]
    return None


def _leaves(model: BaseModel, prefix: str) -> Iterator[tuple[str, JsonValue, JsonValue]]:
    """Path, value and default of everything that is no section; of a section that is off the null."""
    plain = model.model_dump(mode="json")
    for name, field in type(model).model_fields.items():
        value = getattr(model, name)
        if isinstance(value, BaseModel):
            yield from _leaves(value, f"{prefix}{name}.")
        elif name in plain:
            default = None if field.is_required() else field.get_default(call_default_factory=True)
            shown = list(default) if isinstance(default, tuple) else default
            yield f"{prefix}{name}", plain[name], shown
