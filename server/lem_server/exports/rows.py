"""What a row of a bundle must be, so that nothing is stored that the API could not show; its other fields go along."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime
from typing import Annotated, Any, Literal, NamedTuple, Self, TypeVar
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator
from pydantic.types import JsonValue
from sqlalchemy import Table

from lem_domain.bundle import BundleError
from lem_domain.config.campaign import CampaignSpec
from lem_domain.config.experiment import ExperimentConfig
from lem_domain.config.hashing import config_hash
from lem_domain.evidence.streams import ProcessName, StreamManifest
from lem_domain.ids import Sha256
from lem_domain.states import ENDED_STATES, ActorKind, FailureReason, RunState
from lem_domain.wire.runs import EffectiveConfig, LeaseEventKind
from lem_domain.wire.workers import Device

_Int4 = Annotated[int, Field(ge=0, le=2**31 - 1)]
_Bytea = Annotated[str, StringConstraints(pattern=r"^\\x[0-9a-f]{64}$")]
_Object = dict[str, JsonValue]

MAX_ROWS = 1000
"""Of one member; an export writes fewer."""
MAX_HISTORY = 20_000
"""Entries of the log beside one page of runs: 2 MiB of them at most, none shorter than 200 bytes."""


class _Row(BaseModel):
    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False)


class CampaignRow(_Row):
    """`campaigns`."""

    id: UUID
    name: str = Field(min_length=1, max_length=200)
    spec: CampaignSpec
    submitted_by: str
    state: Literal["active", "paused", "cancelled"]
    priority: int
    labels: dict[str, str]
    created_at: datetime


class WorkerRow(_Row):
    """`workers`, without host and boot."""

    id: UUID
    name: str = Field(min_length=1, max_length=200)
    backend: str = Field(min_length=1, max_length=40)
    devices: tuple[Device, ...]
    versions: dict[str, str]
    labels: dict[str, str]


class ExperimentRow(_Row):
    """`experiments`."""

    id: UUID
    campaign_id: UUID
    ordinal: _Int4
    display_name: str
    varied: _Object
    config: ExperimentConfig
    config_hash: Sha256

    @model_validator(mode="after")
    def _hash_is_of_config(self) -> Self:
        if config_hash(self.config) != self.config_hash:
            raise ValueError("config does not have its config_hash")
        return self


class RunRow(_Row):
    """`runs`, ended."""

    id: UUID
    campaign_id: UUID
    experiment_id: UUID
    cycle: _Int4
    position: _Int4
    backend: str
    state: RunState
    reason: FailureReason | None
    message: str | None
    attempts: _Int4
    current_attempt: UUID | None
    created_at: datetime
    updated_at: datetime

    @model_validator(mode="after")
    def _is_over(self) -> Self:
        if self.state not in ENDED_STATES:
            raise ValueError(f"it is {self.state.value}, and a bundle holds runs that have ended")
        return self


class TransitionRow(_Row):
    """`run_transitions`, without the numbers of the database that they were written in."""

    run_id: UUID
    campaign_id: UUID
    source: RunState | None
    target: RunState
    at: datetime
    actor: ActorKind
    actor_name: str
    reason: str | None
    message: str | None
    attempt_id: UUID | None


class AttemptRow(_Row):
    """`attempts`, ended."""

    id: UUID
    run_id: UUID
    number: _Int4
    worker_id: UUID
    devices: tuple[str, ...]
    device_details: tuple[Device, ...]
    claimed_at: datetime
    started_at: datetime | None
    ended_at: datetime
    outcome: Literal["completed", "failed", "interrupted", "cancelled"]
    reason: FailureReason | None
    message: str | None
    environment: _Object | None
    effective_config: EffectiveConfig | None
    manifest: tuple[StreamManifest, ...] | None


class ProcessRow(_Row):
    """`process_results`."""

    attempt_id: UUID
    process: ProcessName
    streams: tuple[StreamManifest, ...]
    summary: _Object


class LeaseEventRow(_Row):
    """`lease_events`, without the numbers of the database that they were written in."""

    attempt_id: UUID
    run_id: UUID
    kind: LeaseEventKind
    at: datetime
    silent_s: float


class LogRow(_Row):
    """`logs`."""

    attempt_id: UUID
    process: ProcessName
    seq: _Int4
    text: str


class AggregateRow(_Row):
    """`aggregates`, without the result, which is a member of its own."""

    key: _Bytea
    run_id: UUID
    attempt_id: UUID
    method: str
    parameters: _Object
    evidence_sha256: _Bytea


R = TypeVar("R", bound=_Row)


class Given(NamedTuple):
    """Checked rows of one table, and their texts as they came, to be stored in these columns."""

    columns: tuple[str, ...]
    texts: tuple[str, ...]

    @property
    def array(self) -> str:
        """All of them as one JSON array."""
        return f"[{','.join(self.texts)}]"


def read_rows(
    member: str,
    content: bytes,
    model: type[R],
    table: Table,
    *,
    without: frozenset[str] = frozenset(),
    most: int = MAX_ROWS,
) -> tuple[list[R], Given]:
    """The rows of a member, one a line, all with the same fields, each of which is a column of the table.

    Raises:
        BundleError: a row is none, or has a field that this version doesn't know.
    """
    known = frozenset(table.columns.keys()) - without
    rows: list[R] = []
    texts = []
    columns: tuple[str, ...] = ()
    for text, value in _objects(member, content, most):
        fields = tuple(sorted(value))
        columns = columns or fields
        unknown = sorted(set(fields) - known)
        if unknown:
            raise BundleError(f"{member} has the field {unknown[0]!r}, which this version does not know; update it.")
        if fields != columns:
            raise BundleError(f"the rows of {member} have different fields; import the file as it was exported.")
        try:
            rows.append(model.model_validate(value))
        except ValidationError as error:
            raise BundleError(f"{member}: {_first(error)}; import the file as it was exported.") from None
        texts.append(text)
    return rows, Given(columns, tuple(texts))


def read_history(
    member: str, content: bytes, table: Table, *, without: frozenset[str]
) -> tuple[list[TransitionRow], Given]:
    """The entries of the log beside a page of runs: however many there are, the page's size bounds them."""
    return read_rows(member, content, TransitionRow, table, without=without, most=MAX_HISTORY)


def read_row(
    member: str, content: bytes, model: type[R], table: Table, *, without: frozenset[str] = frozenset()
) -> tuple[R, Given]:
    """The same of a member that is one row."""
    rows, given = read_rows(member, content, model, table, without=without)
    if len(rows) != 1:
        raise BundleError(f"{member} holds {len(rows)} rows where it should hold one; import the file as exported.")
    return rows[0], given


def _objects(member: str, content: bytes, most: int) -> Iterator[tuple[str, dict[str, Any]]]:
    lines = content.decode("utf-8", errors="replace").removesuffix("\n").split("\n")
    if len(lines) > most:
        raise BundleError(f"{member} holds {len(lines)} rows where {most} is the most; export the campaign again.")
    for line in lines:
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            raise BundleError(f"{member} holds a line that is no JSON; import the file as it was exported.") from None
        if not isinstance(value, dict) or "\\u0000" in line:
            raise BundleError(f"{member} holds a line that is no row; import the file as it was exported.")
        yield line, value


def _first(error: ValidationError) -> str:
    one = error.errors()[0]
    place = ".".join(map(str, one["loc"]))
    message = one["msg"].removeprefix("Value error, ")
    return f"{place}: {message}" if place else message
