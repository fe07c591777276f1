"""Base classes of wire models, pages, and constants of the protocol."""

from __future__ import annotations

from typing import Generic, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field

PROTOCOL_VERSION = 1
"""Version of the protocol between worker and server; a worker of another version is refused with 426."""

PROTOCOL_HEADER = "Lem-Protocol"
WORKER_HEADER = "Lem-Worker"
BOOT_HEADER = "Lem-Boot"

T = TypeVar("T")


class RequestModel(BaseModel):
    """A body that a client sends; unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class AnswerModel(BaseModel):
    """A body that the server sends; clients ignore unknown keys, so that a server may be newer."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    @classmethod
    def of(cls, value: object) -> Self:
        """Build the view of an object that has its fields as attributes."""
        return cls.model_validate(value, from_attributes=True)


class Page(AnswerModel, Generic[T]):
    """One page of a list."""

    items: tuple[T, ...]
    next: str | None = Field(default=None, description="Cursor of the next page; null at the end.")
