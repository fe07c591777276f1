"""A request to the REST API as a value: method, path, parameters, body and the model of its answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar
from urllib.parse import quote

from pydantic import BaseModel

from lem_domain.retries import IDEMPOTENT_METHODS
from lem_domain.wire.base import AnswerModel

M = TypeVar("M", bound=BaseModel)

PAGE_SIZE = 500
"""The largest page that the server gives; a list of 100,000 runs takes 200 requests."""


class Readiness(AnswerModel):
    """Answer of `/readyz`."""

    status: str


class ServerVersion(AnswerModel):
    """Answer of `/version`."""

    version: str
    protocol: int
    method: str


@dataclass(frozen=True)
class Operation(Generic[M]):
    """One request and the model of its answer."""

    method: str
    path: str
    answer: type[M]
    parameters: Mapping[str, str | int | Sequence[str] | None] = field(default_factory=dict)
    """Those of the query; None stays out."""
    body: BaseModel | None = None
    idempotency_key: str | None = None
    idempotent: bool = False
    """Whether a POST without a key has no further effect when it is executed twice."""
    file: bytes | None = None
    """A body that is no JSON, of `media_type`."""
    media_type: str = "application/json"
    read_timeout_s: float = 300.0
    """Aggregating a long run takes the server minutes; every other answer takes milliseconds."""

    @property
    def repeatable(self) -> bool:
        """Whether it may be sent again after a failure."""
        return self.method in IDEMPOTENT_METHODS or self.idempotency_key is not None or self.idempotent


def api_path(*segments: str) -> str:
    """`/api/v1/…`. Segments are quoted: an identifier cannot lead to another resource."""
    return "/".join(("/api/v1", *(quote(segment, safe="") for segment in segments)))
