"""An aggregate as it is stored: the result's canonical bytes and the key that they stand under."""

from __future__ import annotations

from typing import NamedTuple

from lem_server.aggregation.identity import aggregate_key, canonical_bytes
from lem_server.aggregation.inputs import AggregationInput, ChunkSource
from lem_server.aggregation.result import aggregate


class Computed(NamedTuple):
    """A result, its canonical bytes and the key that it is stored under."""

    key: bytes
    evidence_sha256: bytes
    body: bytes


def compute(inputs: AggregationInput, source: ChunkSource) -> Computed:
    """Aggregate, here and now.

    Raises:
        AggregationError: the evidence can't be used.
    """
    result = aggregate(inputs, source)
    return Computed(
        bytes.fromhex(aggregate_key(result)), bytes.fromhex(result.evidence_sha256), canonical_bytes(result)
    )
