"""The rows of a bundle: checked, so that nothing is stored that the API could not show.

Columns and their types are those of the tables. A model below names only the columns that an import uses or that have
a stricter rule; the other fields of a row pass through.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self, TypeVar
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
from lem_server.database import tables

_Int4 = Annotated[int, Field(ge=0, le=2**31 - 1)]
_Bytea = Annotated[str, StringConstraints(pattern=r"^\\x[0-9a-f]{64}$")]
_Object = dict[str, JsonValue]

MAX_ROWS = 1000
"""In one member; an export writes fewer."""
MAX_TRANSITIONS = 20_000
"""In one member: an export writes at most 2 MiB of them, and none is shorter than 200 bytes."""


class BundledRow(BaseModel):
    """A row of a table."""

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False)

    table: ClassVar[Table]
    omitted: ClassVar[frozenset[str]] = frozenset()
    """Columns whose values belong to one database; a bundle does not hold them."""
    order: ClassVar[tuple[str, ...]] = ()
    """Columns that order the rows of one owner; the values of the last row are the cursor of the next page."""
    first: ClassVar[tuple[int | str, ...]] = ()
    """A cursor before all rows."""
    page_size: ClassVar[int] = 1
    most: ClassVar[int] = MAX_ROWS
    """Rows in one member."""


class BundledCampaign(BundledRow):
    """The campaign."""

    table = tables.campaigns
    most = 1
    omitted = frozenset({"imported"})

    id: UUID
    name: str = Field(min_length=1, max_length=200)
    spec: CampaignSpec
    state: Literal["active", "paused", "cancelled"]
    labels: dict[str, str]
    created_at: datetime


class BundledWorker(BundledRow):
    """A worker that tried a run of the campaign."""

    table = tables.workers
    omitted = frozenset({"boot_id", "host", "signed_off_at"})

    name: str = Field(min_length=1, max_length=200)
    backend: str = Field(min_length=1, max_length=40)
    devices: tuple[Device, ...]
    versions: dict[str, str]
    labels: dict[str, str]


class BundledExperiment(BundledRow):
    """An experiment of the campaign."""

    table = tables.experiments
    order = ("ordinal",)
    first = (-1,)
    page_size = 32

    campaign_id: UUID
    ordinal: _Int4
    varied: _Object
    config: ExperimentConfig
    config_hash: Sha256

    @model_validator(mode="after")
    def _hash_is_of_config(self) -> Self:
        if config_hash(self.config) != self.config_hash:
            raise ValueError("config does not have its config_hash")
        return self


class BundledRun(BundledRow):
    """A run that ended."""

    table = tables.runs
    omitted = frozenset({"imported"})
    order = ("position",)
    first = (-1,)
    page_size = 100

    campaign_id: UUID
    cycle: _Int4
    position: _Int4
    state: RunState
    reason: FailureReason | None
    attempts: _Int4
    created_at: datetime
    updated_at: datetime

    @model_validator(mode="after")
    def _has_ended(self) -> Self:
        if self.state not in ENDED_STATES:
            raise ValueError(f"the run is {self.state.value}, and a bundle holds runs that have ended")
        return self


class BundledTransition(BundledRow):
    """An entry of the log of a run's transitions."""

    table = tables.run_transitions
    omitted = frozenset({"id", "xact", "imported"})
    most = MAX_TRANSITIONS

    campaign_id: UUID
    source: RunState | None
    target: RunState
    at: datetime
    actor: ActorKind


class BundledAttempt(BundledRow):
    """An attempt that ended."""

    table = tables.attempts
    most = 1

    id: UUID
    run_id: UUID
    number: _Int4
    devices: tuple[str, ...]
    device_details: tuple[Device, ...]
    claimed_at: datetime
    started_at: datetime | None
    ended_at: datetime
    outcome: Literal["completed", "failed", "interrupted", "cancelled"]
    reason: FailureReason | None
    environment: _Object | None
    effective_config: EffectiveConfig | None
    manifest: tuple[StreamManifest, ...] | None


class BundledProcessResult(BundledRow):
    """The completion marker of a process."""

    table = tables.process_results
    most = 1
    order = ("process",)
    first = ("",)

    attempt_id: UUID
    process: ProcessName
    streams: tuple[StreamManifest, ...]
    summary: _Object


class BundledLeaseEvent(BundledRow):
    """A lease that became suspect or recovered."""

    table = tables.lease_events
    omitted = frozenset({"id"})
    order = ("id",)
    first = (0,)
    page_size = 500

    attempt_id: UUID
    run_id: UUID
    kind: LeaseEventKind
    at: datetime
    silent_s: float


class BundledLog(BundledRow):
    """A piece of a process's output."""

    table = tables.logs
    order = ("process", "seq")
    first = ("", -1)
    page_size = 16  # of up to 65,536 characters each

    attempt_id: UUID
    process: ProcessName
    seq: _Int4
    text: str


class BundledAggregate(BundledRow):
    """An aggregate; its result is the next member of the bundle."""

    table = tables.aggregates
    most = 1
    omitted = frozenset({"result"})

    key: _Bytea
    run_id: UUID
    attempt_id: UUID
    method: str
    parameters: _Object
    evidence_sha256: _Bytea


R = TypeVar("R", bound=BundledRow)


class CheckedRows(NamedTuple):
    """Checked rows of one table as JSON texts, which PostgreSQL stores in the named columns."""

    table: str
    columns: tuple[str, ...]
    texts: tuple[str, ...]

    @property
    def array(self) -> str:
        """All rows as one JSON array."""
        return f"[{','.join(self.texts)}]"


def read_rows(member: str, content: bytes, model: type[R]) -> tuple[list[R], CheckedRows]:
    """Read a member with one row per line, all with the same fields, each of which is a column of the table.

    Raises:
        BundleError: a row is invalid, or has a field that this version doesn't know.
    """
    known = frozenset(model.table.columns.keys()) - model.omitted
    rows: list[R] = []
    texts = []
    columns: tuple[str, ...] = ()
    for text, value in _objects(member, content, model.most):
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
    return rows, CheckedRows(model.table.name, columns, tuple(texts))


def _objects(member: str, content: bytes, most: int) -> Iterator[tuple[str, dict[str, Any]]]:
    lines = content.decode("utf-8", errors="replace").removesuffix("\n").split("\n")
    if len(lines) > most:
        raise BundleError(f"{member} holds {len(lines)} rows, above the limit of {most}; export the campaign again.")
    for line in lines:
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            raise BundleError(f"{member} holds a line that is not JSON; import the file as it was exported.") from None
        # PostgreSQL's jsonb can't store U+0000.
        if not isinstance(value, dict) or "\\u0000" in line:
            raise BundleError(f"{member} holds a line that is not a row; import the file as it was exported.")
        yield line, value


def _first(error: ValidationError) -> str:
    first = error.errors()[0]
    field = ".".join(map(str, first["loc"]))
    message = first["msg"].removeprefix("Value error, ")
    return f"{field}: {message}" if field else message
