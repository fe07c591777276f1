"""Reads the outcome of each rank's warm-up from the evidence; it is never assumed."""

from __future__ import annotations

import pyarrow.compute as pc

from lem_domain.evidence.streams import StreamName
from lem_server.aggregation.evidence_reader import EvidenceReader
from lem_server.aggregation.inputs import Summaries
from lem_server.aggregation.json_values import Maybe, Recorded, json_object

EVENT_KIND = "warmup"
"""Kind of the event whose detail is a `Warmup`."""


class Warmup(Recorded):
    """The end of one rank's warm-up."""

    converged: bool
    requests: Maybe[int] = None
    cv: Maybe[float] = None
    power_slope: Maybe[float] = None


def read_warmup(reader: EvidenceReader, process: str, summaries: Summaries) -> Warmup | None:
    """Read the rank's last `warmup` event, else `warmup_converged` and `warmup_requests` in its completion marker.

    None if neither is recorded.

    Raises:
        EvidenceCorrupt, EvidenceMissing: see `EvidenceReader.read`.
    """
    table = reader.read(process, StreamName.EVENTS, ("kind", "detail"))
    details = table.filter(pc.field("kind") == EVENT_KIND).column("detail").to_pylist()
    for detail in reversed(details):
        warmup = Warmup.of(json_object(detail))
        if warmup is not None:
            return warmup
    summary = summaries.get(process, {})
    return Warmup.of({"converged": summary.get("warmup_converged"), "requests": summary.get("warmup_requests")})
