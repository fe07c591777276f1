"""What the sampler's completion marker says about the energy sources: which opened, what they cover, why not."""

from __future__ import annotations

from typing import NamedTuple

from pydantic.types import JsonValue

from lem_domain.evidence.streams import SAMPLER
from lem_server.aggregation.inputs import Summaries


class Source(NamedTuple):
    """One energy source; `covers` are device UUIDs and host domains."""

    name: str
    opened: bool
    covers: tuple[str, ...]
    reason: str | None


class Sources(NamedTuple):
    """All energy sources of an attempt."""

    all: tuple[Source, ...]
    failed: str | None = None
    """Why the sampler did not come to its end, where it did not."""

    def of(self, part: str) -> str | None:
        """The name of the source that covers a device UUID or host domain, where exactly one says so."""
        names = {source.name for source in self.all if source.opened and part in source.covers}
        return names.pop() if len(names) == 1 else None

    def why_none(self) -> str | None:
        """The reasons of the sources that could not be opened or stopped, and of the sampler itself, as one clause."""
        reasons = [f"{source.name}: {source.reason}" for source in self.all if source.reason]
        reasons += [self.failed] if self.failed else []
        return "; ".join(reasons) or None

    def why_ended(self, part: str) -> str | None:
        """Why what covers a device UUID or host domain did not tell it to the end, as one clause."""
        reasons = [source.reason for source in self.all if source.opened and part in source.covers and source.reason]
        reasons += [self.failed] if self.failed else []
        return "; ".join(reasons) or None


def read_sources(summaries: Summaries) -> Sources:
    """From `{"sources": [{"name", "opened", "domains", "reason"}, ...]}` in the sampler's summary, or `{"failed": why}`
    in one that stands in its place.

    The summary is the worker's own free account: entries of another shape are left out, no figure depends on them.
    """
    summary = summaries.get(SAMPLER, {})
    listed, failed = summary.get("sources"), summary.get("failed")
    entries = listed if isinstance(listed, list) else []
    return Sources(
        tuple(source for entry in entries if (source := _source(entry)) is not None),
        failed if isinstance(failed, str) else None,
    )


def _source(entry: JsonValue) -> Source | None:
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
        return None
    domains, reason = entry.get("domains"), entry.get("reason")
    covers = tuple(str(domain) for domain in domains) if isinstance(domains, list) else ()
    return Source(str(entry["name"]), entry.get("opened") is True, covers, reason if isinstance(reason, str) else None)
