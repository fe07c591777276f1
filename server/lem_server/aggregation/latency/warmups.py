"""What the ranks recorded about their warm-up: converged or not is read from the evidence, never assumed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import NamedTuple

import pyarrow.compute as pc
from pydantic.types import JsonValue

from lem_domain.evidence.streams import StreamName
from lem_server.aggregation.energy.sampler_record import number_of
from lem_server.aggregation.evidence_reader import EvidenceReader
from lem_server.aggregation.inputs import Summaries

EVENT_KIND = "warmup"
"""Kind of the event whose detail holds `converged` (bool), `requests` (int), `cv` and `power_slope` (float or null)."""


class Warmup(NamedTuple):
    """The end of one rank's warm-up."""

    converged: bool
    requests: int | None
    cv: float | None
    power_slope: float | None = None


def read_warmup(reader: EvidenceReader, process: str, summaries: Summaries) -> Warmup | None:
    """From the rank's last `warmup` event, else from `warmup_converged` and `warmup_requests` in its completion marker.

    None where neither tells.

    Raises:
        EvidenceCorrupt, EvidenceMissing: see `EvidenceReader.read`.
    """
    table = reader.read(process, StreamName.EVENTS, ("kind", "detail"))
    details = table.filter(pc.field("kind") == EVENT_KIND).column("detail").to_pylist()
    for detail in reversed(details):
        warmup = _warmup(_parsed(detail))
        if warmup is not None:
            return warmup
    summary = summaries.get(process, {})
    return _warmup({"converged": summary.get("warmup_converged"), "requests": summary.get("warmup_requests")})


def _parsed(detail: str | None) -> JsonValue:
    try:
        parsed: JsonValue = json.loads(detail or "null")
    except ValueError:
        return None
    return parsed


def _warmup(entry: JsonValue) -> Warmup | None:
    if not isinstance(entry, Mapping) or not isinstance(entry.get("converged"), bool):
        return None
    requests = number_of(entry.get("requests"))
    return Warmup(
        entry["converged"] is True,
        int(requests) if requests is not None else None,
        number_of(entry.get("cv")),
        number_of(entry.get("power_slope")),
    )
