"""What can be configured, as a server's version knows it."""

from __future__ import annotations

from pydantic import Field
from pydantic.types import JsonValue

from lem_domain.wire.base import AnswerModel


class KeyView(AnswerModel):
    """One key of a campaign file."""

    path: str = Field(description="Dotted; `[]` stands for any place in a list.")
    type: str
    required: bool
    default: JsonValue = Field(description="Null where there is none: the engine's own applies, or nothing happens.")
    unit: str | None = Field(description="`1` is a plain number.")
    constraint: str | None
    description: str
    engine_parameter: str | None = Field(description="The engine's own name for it.")
    group: bool = Field(description="Whether it holds keys of its own.")


class PresetView(AnswerModel):
    """A built-in preset."""

    name: str
    description: str
    values: dict[str, JsonValue]


class SchemaView(AnswerModel):
    """Every key, and the presets."""

    campaign: tuple[KeyView, ...]
    experiment: tuple[KeyView, ...]
    presets: tuple[PresetView, ...]


class BackendView(AnswerModel):
    """A backend."""

    name: str
    description: str
    keys: tuple[KeyView, ...]
    workers_online: int
