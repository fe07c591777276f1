"""Content addresses: digests of evidence and inputs, the key of an aggregate, and a result's canonical bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import cache
from importlib.metadata import version

from pydantic.types import JsonValue

from lem_domain.config.hashing import canonical_json
from lem_domain.results.run import RunResult
from lem_server.aggregation.inputs import AggregationInput


def evidence_digest(chunks: Iterable[tuple[str, str, int, str]]) -> str:
    """Return the SHA-256 (64 hex digits) over one line `process stream seq sha256\\n` per chunk.

    `chunks` are (process, stream, seq, sha256) in any order; the lines are sorted by process and stream as text and by
    seq as a number, so that the order of arrival doesn't matter.
    """
    whole = hashlib.sha256()
    for process, stream, seq, digest in sorted(chunks):
        whole.update(f"{process} {stream} {seq} {digest}\n".encode())
    return whole.hexdigest()


def inputs_digest(inputs: AggregationInput) -> str:
    """Return the SHA-256 (64 hex digits) over the inputs other than chunks and parameters."""
    effective = inputs.effective_config
    facts: JsonValue = {
        "run_id": inputs.run_id,
        "attempt_id": inputs.attempt_id,
        "config": inputs.config.model_dump(mode="json"),
        "devices": [device.model_dump(mode="json") for device in inputs.devices],
        "processes": list(inputs.processes),
        "manifest": [entry.model_dump(mode="json") for entry in inputs.manifest],
        "summaries": {process: dict(summary) for process, summary in inputs.summaries.items()},
        "effective_config": None if effective is None else effective.model_dump(mode="json"),
    }
    return hashlib.sha256(canonical_json(facts)).hexdigest()


@cache
def computed_by() -> str:
    """Return LEM's version with a digest of the schema of its results."""
    form = hashlib.sha256(canonical_json(RunResult.model_json_schema())).hexdigest()
    return f"LEM {version('llm-energy-measurement')}, results of form {form[:16]}"


def aggregate_key(result: RunResult) -> str:
    """Return the SHA-256 (64 hex digits) that identifies an aggregate by its inputs and LEM's version.

    The same version must compute the same bytes from the same inputs.
    """
    named: dict[str, JsonValue] = {
        "evidence_sha256": result.evidence_sha256,
        "method": result.method,
        "parameters": result.parameters,
        "inputs_sha256": result.inputs_sha256,
        "computed_by": result.computed_by,
    }
    return hashlib.sha256(canonical_json(named)).hexdigest()


def canonical_bytes(result: RunResult) -> bytes:
    """Return the canonical JSON of a result in UTF-8; equal results have equal bytes."""
    return canonical_json(result.model_dump(mode="json"))
