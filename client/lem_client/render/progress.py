"""A campaign's events as a live view for terminals, and as lines for logs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING

from lem_client.events import Event
from lem_client.render.numbers import MISSING, duration, number
from lem_client.render.terminal import table
from lem_domain.states import ENDED_STATES, LIVE_STATES, CampaignState, RunState
from lem_domain.wire.campaigns import CampaignView, WaitReason
from lem_domain.wire.events import AggregationEvent, CampaignEvent, RunProgressEvent, RunTransitionEvent
from lem_domain.wire.runs import Progress

if TYPE_CHECKING:
    from rich.console import RenderableType

PROGRESS_LINE_S = 10.0
"""Least time between two progress lines of one run, so that a log stays readable."""


@dataclass
class CampaignPicture:
    """State of a campaign after the events so far."""

    campaign: CampaignView | None = None
    live_runs: dict[str, LiveRun] = field(default_factory=dict)

    def apply(self, event: Event) -> None:
        """Update the state by an event."""
        if isinstance(event, CampaignEvent):
            self.campaign = event.campaign
        elif isinstance(event, RunTransitionEvent):
            if event.target in LIVE_STATES:
                self.live_runs.setdefault(event.run_id, LiveRun(event.display_name, event.cycle)).state = event.target
            else:
                self.live_runs.pop(event.run_id, None)
        elif isinstance(event, RunProgressEvent) and event.run_id in self.live_runs:
            self.live_runs[event.run_id].progress = event.progress

    @property
    def done(self) -> int:
        """Number of runs that have ended."""
        return 0 if self.campaign is None else self.campaign.runs.in_states(*ENDED_STATES)

    def summary(self) -> str:
        """`3 of 8 runs: 2 completed, 1 failed, 1 running, 4 queued`."""
        if self.campaign is None:
            return "waiting for the server"
        counts = self.campaign.runs
        present = [f"{count} {state.value}" for state in _ORDER if (count := getattr(counts, state.value))]
        paused = "; paused" if self.campaign.state is CampaignState.PAUSED else ""
        return f"{self.done} of {counts.total} runs: {', '.join(present)}{paused}"


_ORDER: Sequence[RunState] = (
    RunState.AGGREGATED,
    RunState.COMPLETED,
    RunState.FAILED,
    RunState.INTERRUPTED,
    RunState.CANCELLED,
    RunState.RUNNING,
    RunState.INITIALISED,
    RunState.QUEUED,
)


@dataclass
class LiveRun:
    """A run that a worker executes."""

    display_name: str
    cycle: int
    state: RunState = RunState.INITIALISED
    progress: Progress | None = None

    def cells(self) -> tuple[str, ...]:
        """Cells: name, cycle, phase, share done, requests, tokens, rate and power."""
        now = self.progress
        if now is None:
            return (self.display_name, str(self.cycle), self.state.value, *[MISSING] * 5)
        return (
            self.display_name,
            str(self.cycle),
            now.phase,
            duration(now.elapsed_s) if now.fraction is None else f"{now.fraction:.0%}",
            str(now.requests_done),
            str(now.generated_tokens),
            MISSING if now.output_rate_tok_s is None else number(now.output_rate_tok_s),
            MISSING if now.power_w is None else number(now.power_w),
        )


class EventLines:
    """One line per transition, and a progress line per run at most every `PROGRESS_LINE_S`."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._progress_at: dict[str, float] = {}
        self._paused = False
        self._waiting: tuple[WaitReason, datetime | None] | None = None

    def of(self, event: Event) -> Iterator[str]:
        """Yield the lines of an event."""
        if isinstance(event, CampaignEvent):
            paused = event.campaign.state is CampaignState.PAUSED
            if paused != self._paused:
                yield resume_hint(event.campaign) if paused else "the campaign is resumed"
            self._paused = paused
            waiting = event.campaign.waiting
            why = None if waiting is None else (waiting.reason, waiting.until)
            if waiting is not None and why != self._waiting:
                yield f"waiting: {waiting.message}"
            self._waiting = why
        elif isinstance(event, RunTransitionEvent):
            yield transition_line(event)
        elif isinstance(event, AggregationEvent):
            if self._is_due("aggregation"):
                yield f"aggregated {event.done} of {event.total} runs"
        elif self._is_due(event.run_id):
            yield progress_line(event)

    def _is_due(self, subject: str) -> bool:
        now = self._clock()
        if now - self._progress_at.get(subject, float("-inf")) < PROGRESS_LINE_S:
            return False
        self._progress_at[subject] = now
        return True


def resume_hint(campaign: CampaignView) -> str:
    """State that a campaign is paused, and how to resume it."""
    return f"the campaign is paused, no run starts; resume it: lemctl resume {campaign.id}"


def transition_line(event: RunTransitionEvent) -> str:
    """`10:02:11  batch_size=8, cycle 1: running (was initialised)`, with the reason where there is one."""
    at = event.at.astimezone().strftime("%H:%M:%S")
    was = f" (was {event.source.value})" if event.source is not None else ""
    why = " – ".join(part for part in (event.reason, event.message) if part)
    return f"{at}  {event.display_name}, cycle {event.cycle}: {event.target.value}{was}{f': {why}' if why else ''}"


def progress_line(event: RunProgressEvent) -> str:
    """`          batch_size=8, cycle 1: measure 40%, 12 requests, 384 tokens, 61.2 tok/s, 18.3 W`."""
    now = event.progress
    parts = [now.phase if now.fraction is None else f"{now.phase} {now.fraction:.0%}"]
    parts += [f"{now.requests_done} requests", f"{now.generated_tokens} tokens"]
    if now.output_rate_tok_s is not None:
        parts.append(f"{number(now.output_rate_tok_s)} tok/s")
    if now.power_w is not None:
        parts.append(f"{number(now.power_w)} W")
    return f"          {event.display_name}, cycle {event.cycle}: {', '.join(parts)}"


def live_view(picture: CampaignPicture, elapsed_s: float) -> RenderableType:
    """Lay out the bar over all runs and a table of the live ones."""
    from rich.console import Group  # noqa: PLC0415 - for terminals only
    from rich.progress_bar import ProgressBar  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    total = picture.campaign.runs.total if picture.campaign else 1
    partial = sum((run.progress.fraction or 0.0) for run in picture.live_runs.values() if run.progress)
    parts: list[RenderableType] = [
        Text(f"{picture.summary()}, {duration(elapsed_s)}"),
        ProgressBar(total=max(total, 1), completed=min(picture.done + partial, total), width=60),
    ]
    if picture.live_runs:
        headings = ("experiment", "cycle", "phase", "done", "requests", "tokens", "tok/s", "W")
        rows = [run.cells() for run in list(picture.live_runs.values())]
        parts.append(table(headings, rows, right=("cycle", *headings[3:])))
    elif picture.campaign is not None and picture.done < total:
        paused = picture.campaign.state is CampaignState.PAUSED
        waiting = picture.campaign.waiting
        why = "waiting for a worker" if waiting is None else f"waiting: {waiting.message}"
        parts.append(Text(resume_hint(picture.campaign) if paused else why))
    return Group(*parts)
