"""How long a campaign takes at least: what can be known before anything has run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

from lem_domain.config.gaps import Gaps, Turn
from lem_domain.config.ordering import PlannedRun


class LeastDuration(NamedTuple):
    """Seconds on one device, one run after another; loading, warm-up and baselines come on top."""

    windows_s: float
    gaps_s: float
    """Gaps by time; one by cooling may be over at once."""

    @property
    def total_s(self) -> float:
        """Both together."""
        return self.windows_s + self.gaps_s


def least_duration(runs: Sequence[PlannedRun], windows_s: Sequence[float], gaps: Gaps) -> LeastDuration:
    """The measured windows (least seconds of each experiment) and the gaps between the runs, in their order."""
    return LeastDuration(
        windows_s=sum(windows_s[run.experiment] for run in runs),
        gaps_s=sum(_gaps_s(runs, gaps)) if gaps.config or gaps.cycle else 0.0,
    )


def _gaps_s(runs: Sequence[PlannedRun], gaps: Gaps) -> Iterable[float]:
    for previous, following in pairwise(runs):
        yield gaps.least_s(Turn(previous.experiment, previous.cycle), Turn(following.experiment, following.cycle))
