"""The shortest possible duration of a campaign, computed from its configuration."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

from lem_domain.config.gaps import ExperimentCycle, RunGaps
from lem_domain.config.ordering import PlannedRun


class LeastDuration(NamedTuple):
    """Seconds on one device, one run after another, without loading, warm-up and baselines."""

    windows_s: float
    gaps_s: float
    """RunGaps by time; a gap by cooling may end at once."""

    @property
    def total_s(self) -> float:
        """Windows and gaps."""
        return self.windows_s + self.gaps_s


def least_duration(runs: Sequence[PlannedRun], windows_s: Sequence[float], gaps: RunGaps) -> LeastDuration:
    """The sum of all windows (`windows_s` has the shortest of each experiment) and of the gaps between the runs."""
    return LeastDuration(
        windows_s=sum(windows_s[run.experiment] for run in runs),
        gaps_s=sum(_gaps_s(runs, gaps)) if gaps.config or gaps.cycle else 0.0,
    )


def _gaps_s(runs: Sequence[PlannedRun], gaps: RunGaps) -> Iterable[float]:
    for previous, following in pairwise(runs):
        yield gaps.least_s(
            ExperimentCycle(previous.experiment, previous.cycle), ExperimentCycle(following.experiment, following.cycle)
        )
