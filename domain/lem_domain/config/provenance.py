"""The origin of each value of a resolved experiment."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from enum import StrEnum
from typing import NamedTuple

from pydantic.types import JsonValue

from lem_domain.config.documents import flattened
from lem_domain.config.experiment import ExperimentConfig
from lem_domain.config.keys import keys_of
from lem_domain.config.model_base import ConfigModel, key


class Source(StrEnum):
    """What set a value; an earlier member takes precedence over a later one."""

    COMMAND_LINE = "command_line"
    SWEEP = "sweep"
    """The campaign varies it, in its sweep or in its list of experiments."""
    FILE = "file"
    PRESET = "preset"
    REQUEST = "request"
    """The submitted body, without further provenance."""
    DEFAULT = "default"


class Origin(ConfigModel):
    """Where a value was set, as reported by the client."""

    source: Source
    detail: str = key("", "File and line, name of a preset, or option.", max_length=1000)


class ResolvedValue(NamedTuple):
    """One value of an experiment and its origin."""

    path: str
    value: JsonValue
    source: Source
    detail: str


def resolved_values(
    config: ExperimentConfig, *, varied: Collection[str], origins: Mapping[str, Origin]
) -> Iterator[ResolvedValue]:
    """Every value of a configuration with its origin.

    `origins` has the base's values by dotted path, axes by `sweep.` and their path, and the list of `experiments`.
    The origin of an enclosing section applies only to values that differ from the default: `model: x` does not set a
    revision.
    """
    defaults = {key.path: key.default for key in keys_of(ExperimentConfig)}
    for path, value in flattened(config.model_dump(mode="json")):
        axis = next((one for one in varied if path == one or path.startswith(f"{one}.")), None)
        if axis is not None:
            swept = origins.get(f"sweep.{axis}") or origins.get("experiments")
            yield ResolvedValue(path, value, Source.SWEEP, swept.detail if swept else "")
            continue
        changed = value != defaults[path]
        origin = _nearest(path, origins) if changed else origins.get(path)
        if origin is not None:
            yield ResolvedValue(path, value, origin.source, origin.detail)
        else:
            yield ResolvedValue(path, value, Source.REQUEST if changed else Source.DEFAULT, "")


def _nearest(path: str, origins: Mapping[str, Origin]) -> Origin | None:
    """The origin of a path, or of the nearest section around it."""
    while path and path not in origins:
        path = path.rpartition(".")[0]
    return origins.get(path)
