"""Gaps between runs, by time or by cooling: which apply to a run, their remaining time, and a campaign's least time."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple, Self

from pydantic import model_validator

from lem_domain.config.model_base import ConfigModel, key
from lem_domain.config.ordering import PlannedRun


class GapConfig(ConfigModel):
    """A pause of a device: a number of seconds, or until it has cooled."""

    seconds: float | None = key(
        None, "Time after the end of the previous run on the device.", gt=0, le=86_400, unit="s"
    )
    temperature_c: int | None = key(
        None,
        "Wait until the device is no warmer; a device without a temperature sensor waits `max_seconds`.",
        ge=20,
        le=110,
        unit="°C",
    )
    max_seconds: float | None = key(
        None, "Longest wait with `temperature_c`, cooled or not.", gt=0, le=86_400, unit="s"
    )

    @model_validator(mode="after")
    def _by_time_or_by_cooling(self) -> Self:
        cooling = self.temperature_c is not None or self.max_seconds is not None
        if self.seconds is not None and cooling:
            raise ValueError("a gap is by time or by cooling; keep seconds, or temperature_c with max_seconds")
        if self.seconds is None and not cooling:
            raise ValueError("a gap needs seconds, or temperature_c with max_seconds; set one of them")
        if cooling and self.temperature_c is None:
            raise ValueError("max_seconds bounds a gap by cooling; set temperature_c too, or use seconds")
        if cooling and self.max_seconds is None:
            raise ValueError("temperature_c needs max_seconds, in case the device never cools down; set it")
        return self

    def remaining_s(self, elapsed_s: float, temperature_c: float | None) -> float:
        """Longest remaining time in seconds, `elapsed_s` after the end of the previous run."""
        if self.temperature_c is not None and temperature_c is not None and temperature_c <= self.temperature_c:
            return 0.0
        return max(0.0, (self.seconds or self.max_seconds or 0.0) - elapsed_s)

    def describe(self) -> str:
        """`60 s`, or `until 45 °C, at most 300 s`."""
        if self.seconds is not None:
            return f"{self.seconds:g} s"
        return f"until {self.temperature_c} °C, at most {self.max_seconds:g} s"


class ExperimentCycle(NamedTuple):
    """The experiment (any key that identifies it) and the cycle of a run."""

    experiment: object
    cycle: int


class RunGaps(NamedTuple):
    """The configured gaps between the runs of a campaign."""

    config: GapConfig | None
    cycle: GapConfig | None

    def between(self, previous: ExperimentCycle, following: ExperimentCycle) -> tuple[GapConfig, ...]:
        """The gaps that apply to a run after the previous run of its campaign on the same device.

        `cycle` applies to a different cycle, `config` to a different experiment or a retry of the same run. Both are
        counted from the same end, so the longer one decides; they never add up.
        """
        another_cycle = previous.cycle != following.cycle
        another_experiment = previous.experiment != following.experiment
        return tuple(
            gap
            for gap, applies in ((self.config, another_experiment or not another_cycle), (self.cycle, another_cycle))
            if gap is not None and applies
        )

    def least_s(self, previous: ExperimentCycle, following: ExperimentCycle) -> float:
        """Shortest wait of a run in seconds: the longest gap by time; a gap by cooling may end at once."""
        return max((gap.seconds or 0.0 for gap in self.between(previous, following)), default=0.0)


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
    cycles = (ExperimentCycle(run.experiment, run.cycle) for run in runs)
    gaps_s = sum(gaps.least_s(*pair) for pair in pairwise(cycles)) if gaps.config or gaps.cycle else 0.0
    return LeastDuration(sum(windows_s[run.experiment] for run in runs), gaps_s)
