"""Content addresses: the digest of the evidence, the key of an aggregate, and a result's one byte form."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

from pydantic.types import JsonValue

from lem_domain.config.hashing import canonical_json
from lem_domain.results import RunResult
from lem_domain.wire.runs import StreamView


def evidence_digest(chunks: Iterable[tuple[str, str, int, str]]) -> str:
    """SHA-256 (64 hex digits) over one line `process stream seq sha256\\n` per chunk.

    `chunks` are (process, stream, seq, sha256) in any order; the lines are sorted by process and stream as text and by
    seq as a number, so that the order of arrival doesn't matter.
    """
    whole = hashlib.sha256()
    for process, stream, seq, digest in sorted(chunks):
        whole.update(f"{process} {stream} {seq} {digest}\n".encode())
    return whole.hexdigest()


def held_digest(held: Iterable[StreamView]) -> str:
    """`evidence_digest` of what the server holds, known before any chunk is read."""
    return evidence_digest(
        (view.process, view.stream.value, chunk.seq, chunk.sha256) for view in held for chunk in view.chunks
    )


def aggregate_key(evidence_sha256: str, method: str, parameters: Mapping[str, JsonValue]) -> str:
    """SHA-256 (64 hex digits) that names an aggregate: same evidence, method and parameters, same key."""
    named: JsonValue = {"evidence_sha256": evidence_sha256, "method": method, "parameters": dict(parameters)}
    return hashlib.sha256(canonical_json(named)).hexdigest()


def canonical_bytes(result: RunResult) -> bytes:
    """The one byte form of a result: canonical JSON, UTF-8; equal results have equal bytes."""
    return canonical_json(result.model_dump(mode="json"))
