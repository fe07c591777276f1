"""The root of all errors, the codes of REST problems, and the body that carries them.

Every process raises its own errors below one root. Each surface (HTTP answer, exit status, end of an attempt)
translates them in one place:

    LemError
      + ConfigurationError            invalid campaign or experiment
      + BundleError                   unusable bundle of results
      + ChunkError                    unusable chunk of evidence
      |   + ChunkTooLarge
      |
      |   lem_server
      + ProblemError                  answered as application/problem+json
      + AggregationError
      |   + EvidenceMissing, EvidenceCorrupt, EvidenceInvalid
      + DatabaseError
      |   + SchemaNotAtHead
      + StartError
      |
      |   lem_worker: the end of an attempt, or of the worker itself
      + AttemptEnded, AttemptLost
      + BackendUnavailable, OptionRefused, EngineRefused, NotLoaded, ModelNotFound
      + PromptRefused, TrafficRefused, RequestFailed, NotMeasurable
      + SourceUnavailable, EnergyRequired
      + ServerRefused, SpoolError, RecordingError
      |
      |   lem_client: each with an exit status
      + ServerUnreachable, NoAnswerInTime, TransferInterrupted
      + CredentialsError, FileError, UsageError
      + AnswerError                   a problem that the server answered with
          + Unauthenticated, Forbidden, NotFound, InvalidRequest, Conflict, ServerFailed
"""

from __future__ import annotations

from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field


class ProblemCode(StrEnum):
    """The `code` member of an `application/problem+json` answer; stable across versions."""

    VALIDATION = "validation"
    BAD_REQUEST = "bad_request"
    UNAUTHENTICATED = "unauthenticated"
    FORBIDDEN = "forbidden"
    NOT_FOUND = "not_found"
    METHOD_NOT_ALLOWED = "method_not_allowed"
    CONFLICT = "conflict"
    ILLEGAL_TRANSITION = "illegal_transition"
    LEASE_LOST = "lease_lost"
    ATTEMPT_CLOSED = "attempt_closed"
    BOOT_SUPERSEDED = "boot_superseded"
    CHUNK_CONFLICT = "chunk_conflict"
    DIGEST_MISMATCH = "digest_mismatch"
    MANIFEST_INCOMPLETE = "manifest_incomplete"
    EVIDENCE_INVALID = "evidence_invalid"
    EVIDENCE_MISSING = "evidence_missing"
    EVIDENCE_CORRUPT = "evidence_corrupt"
    AGGREGATE_NOT_REPRODUCIBLE = "aggregate_not_reproducible"
    BUNDLE_INVALID = "bundle_invalid"
    IDEMPOTENCY_MISMATCH = "idempotency_mismatch"
    PAYLOAD_TOO_LARGE = "payload_too_large"
    DECOMPRESSION_LIMIT = "decompression_limit"
    UNSUPPORTED_MEDIA_TYPE = "unsupported_media_type"
    CLIENT_TOO_OLD = "client_too_old"
    NOT_READY = "not_ready"
    INTERNAL = "internal"


class LemError(Exception):
    """Root of the project's errors. The message says in one sentence what happened and what to change."""


class ConfigurationError(LemError):
    """An invalid configuration; `field_problems` lists all of its problems."""

    def __init__(self, message: str, field_problems: tuple[FieldProblem, ...] = ()) -> None:
        super().__init__(message)
        self.field_problems = field_problems


class FieldProblem(BaseModel):
    """A problem of one value of the input."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pointer: str = Field(description="JSON pointer (RFC 6901) to the offending value.")
    message: str = Field(description="What is wrong and what to change.")


class Problem(BaseModel):
    """The body of every answer without a success status (RFC 9457, `application/problem+json`)."""

    model_config = ConfigDict(frozen=True, extra="allow")

    type: str = Field(description="URI reference of the problem type, `/problems/<code>`.")
    title: str = Field(description="Short name of the problem type.")
    status: int = Field(description="HTTP status code.")
    code: ProblemCode = Field(description="Stable code to branch on.")
    detail: str = Field(description="One sentence: what happened and what to change.")
    errors: tuple[FieldProblem, ...] = Field(default=(), description="All problems of an invalid input.")
    request_id: str | None = Field(default=None, description="Identifies the request in the server's log.")
