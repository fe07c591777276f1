"""The configuration keys, presets and backends of a server's version."""

from __future__ import annotations

from pydantic import Field
from pydantic.types import JsonValue

from lem_domain.wire.base import AnswerModel


class KeyView(AnswerModel):
    """One key of a campaign file."""

    path: str = Field(description="Dotted; `[]` is any index of a list.")
    type: str
    required: bool
    default: JsonValue = Field(description="Null without one: the engine's default applies, or the feature is off.")
    unit: str | None = Field(description="`1` is a plain number.")
    constraint: str | None
    description: str
    engine_parameter: str | None = Field(description="The engine's name of the parameter.")
    group: bool = Field(description="Whether it contains keys.")


class PresetView(AnswerModel):
    """A built-in preset."""

    name: str
    description: str
    values: dict[str, JsonValue]


class SchemaView(AnswerModel):
    """All keys, and the presets."""

    campaign: tuple[KeyView, ...]
    experiment: tuple[KeyView, ...]
    presets: tuple[PresetView, ...]


class BackendView(AnswerModel):
    """A backend."""

    name: str
    description: str
    keys: tuple[KeyView, ...]
    workers_online: int
