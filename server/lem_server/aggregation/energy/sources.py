"""Reads the energy sources from the sampler's completion marker: which opened, what they cover, why they failed."""

from __future__ import annotations

from typing import NamedTuple

from pydantic import Field

from lem_domain.evidence.streams import SAMPLER
from lem_server.aggregation.inputs import Summaries
from lem_server.aggregation.json_values import Maybe, Recorded, records


class ReportedSource(Recorded):
    """One energy source; `covers` are device UUIDs and host domains."""

    name: str
    opened: bool = False
    covers: list[str] = Field(default=[], alias="domains")
    reason: Maybe[str] = None


class ReportedSources(NamedTuple):
    """All energy sources of an attempt."""

    all: tuple[ReportedSource, ...]
    failed: str | None = None
    """Why the sampler did not finish; None if it did."""

    def of(self, part: str) -> str | None:
        """Return the name of the only source that covers a device UUID or host domain; None if there are several."""
        names = {source.name for source in self.all if source.opened and part in source.covers}
        return names.pop() if len(names) == 1 else None

    def why_none(self) -> str | None:
        """Return why sources could not be opened or stopped, and why the sampler failed, as one clause."""
        reasons = [f"{source.name}: {source.reason}" for source in self.all if source.reason]
        reasons += [self.failed] if self.failed else []
        return "; ".join(reasons) or None

    def why_ended(self, part: str) -> str | None:
        """Return why the source of a device UUID or host domain stopped before the end, as one clause."""
        reasons = [source.reason for source in self.all if source.opened and part in source.covers and source.reason]
        reasons += [self.failed] if self.failed else []
        return "; ".join(reasons) or None


def read_sources(summaries: Summaries) -> ReportedSources:
    """Read `{"sources": [{"name", "opened", "domains", "reason"}, ...]}`, or `{"failed": why}` of a failed sampler.

    The worker writes the summary freely: entries of another shape are ignored, and no figure depends on them.
    """
    summary = summaries.get(SAMPLER, {})
    failed = summary.get("failed")
    return ReportedSources(records(ReportedSource, summary.get("sources")), failed if isinstance(failed, str) else None)
