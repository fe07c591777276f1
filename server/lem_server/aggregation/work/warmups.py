"""Reads the outcome of each rank's warm-up from the evidence; it is never assumed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import pyarrow.compute as pc
from pydantic.types import JsonValue

from lem_domain.evidence.streams import StreamName
from lem_server.aggregation.evidence_reader import EvidenceReader
from lem_server.aggregation.inputs import Summaries
from lem_server.aggregation.json_values import finite_number, json_object

EVENT_KIND = "warmup"
"""Kind of the event whose detail holds `converged` (bool), `requests` (int), `cv` and `power_slope` (float or null)."""


class Warmup(NamedTuple):
    """The end of one rank's warm-up."""

    converged: bool
    requests: int | None
    cv: float | None
    power_slope: float | None = None


def read_warmup(reader: EvidenceReader, process: str, summaries: Summaries) -> Warmup | None:
    """Read the rank's last `warmup` event, else `warmup_converged` and `warmup_requests` in its completion marker.

    None if neither is recorded.

    Raises:
        EvidenceCorrupt, EvidenceMissing: see `EvidenceReader.read`.
    """
    table = reader.read(process, StreamName.EVENTS, ("kind", "detail"))
    details = table.filter(pc.field("kind") == EVENT_KIND).column("detail").to_pylist()
    for detail in reversed(details):
        warmup = _warmup(json_object(detail))
        if warmup is not None:
            return warmup
    summary = summaries.get(process, {})
    return _warmup({"converged": summary.get("warmup_converged"), "requests": summary.get("warmup_requests")})


def _warmup(entry: Mapping[str, JsonValue]) -> Warmup | None:
    if not isinstance(entry.get("converged"), bool):
        return None
    requests = finite_number(entry.get("requests"))
    return Warmup(
        entry["converged"] is True,
        int(requests) if requests is not None else None,
        finite_number(entry.get("cv")),
        finite_number(entry.get("power_slope")),
    )
