"""Reads the energy sources from the sampler's completion marker: which opened, what they cover, why they failed."""

from __future__ import annotations

from typing import NamedTuple

from pydantic.types import JsonValue

from lem_domain.evidence.streams import SAMPLER
from lem_server.aggregation.inputs import Summaries
from lem_server.aggregation.json_values import string


class ReportedSource(NamedTuple):
    """One energy source; `covers` are device UUIDs and host domains."""

    name: str
    opened: bool
    covers: tuple[str, ...]
    reason: str | None


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
    listed, failed = summary.get("sources"), summary.get("failed")
    entries = listed if isinstance(listed, list) else []
    return ReportedSources(
        tuple(source for entry in entries if (source := _source(entry)) is not None),
        string(failed),
    )


def _source(entry: JsonValue) -> ReportedSource | None:
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
        return None
    domains, reason = entry.get("domains"), entry.get("reason")
    covers = tuple(str(domain) for domain in domains) if isinstance(domains, list) else ()
    return ReportedSource(
        str(entry["name"]), entry.get("opened") is True, covers, reason if isinstance(reason, str) else None
    )
