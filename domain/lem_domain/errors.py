"""One root for every error of the project, and the stable codes that a REST answer carries."""

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
    DEVICE_BUSY = "device_busy"
    WORKER_DRAINING = "worker_draining"
    PAYLOAD_TOO_LARGE = "payload_too_large"
    DECOMPRESSION_LIMIT = "decompression_limit"
    UNSUPPORTED_MEDIA_TYPE = "unsupported_media_type"
    CLIENT_TOO_OLD = "client_too_old"
    RATE_LIMITED = "rate_limited"
    NOT_READY = "not_ready"
    INTERNAL = "internal"


class LemError(Exception):
    """Root of the project's errors; its text is one sentence that tells the user what to change."""


class ConfigurationError(LemError):
    """A configuration that can't be accepted; `findings` lists every problem at once."""

    def __init__(self, message: str, findings: tuple[FieldProblem, ...] = ()) -> None:
        super().__init__(message)
        self.findings = findings


class FieldProblem(BaseModel):
    """One problem of one field, addressed by an RFC 6901 JSON pointer."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pointer: str = Field(description="JSON pointer (RFC 6901) to the offending value.")
    message: str = Field(description="What is wrong and what to change.")


class Problem(BaseModel):
    """The body of every answer that is not a success (RFC 9457, `application/problem+json`)."""

    model_config = ConfigDict(frozen=True, extra="allow")

    type: str = Field(description="URI reference of the problem type, `/problems/<code>`.")
    title: str = Field(description="Short name of the problem type.")
    status: int = Field(description="HTTP status code.")
    code: ProblemCode = Field(description="Stable code to branch on.")
    detail: str = Field(description="One sentence: what happened and what to change.")
    errors: tuple[FieldProblem, ...] = Field(default=(), description="Every problem of the input, where it applies.")
    request_id: str | None = Field(default=None, description="Identifies the request in the server's log.")
