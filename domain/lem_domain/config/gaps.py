"""Gaps between runs, by time or by cooling: which of them a run waits for, and for how much longer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, Self

from pydantic import Field, model_validator

from lem_domain.config.model_base import ConfigModel, unit


class GapConfig(ConfigModel):
    """A pause of a device: so many seconds, or until it has cooled."""

    seconds: float | None = Field(
        default=None,
        gt=0,
        le=86_400,
        description="So long after the end of the previous run on that device.",
        json_schema_extra=unit("s"),
    )
    temperature_c: int | None = Field(
        default=None,
        ge=20,
        le=110,
        description="Until the device is no warmer; one that reports no temperature waits `max_seconds`.",
        json_schema_extra=unit("°C"),
    )
    max_seconds: float | None = Field(
        default=None,
        gt=0,
        le=86_400,
        description="With `temperature_c`: no longer than this, cooled or not.",
        json_schema_extra=unit("s"),
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
            raise ValueError("temperature_c needs max_seconds, for a device that never gets so cool; set it")
        return self

    def remaining_s(self, elapsed_s: float, temperature_c: float | None) -> float:
        """How much longer it lasts, at most, so long after the previous run's end and with the device so warm."""
        if self.temperature_c is not None and temperature_c is not None and temperature_c <= self.temperature_c:
            return 0.0
        return max(0.0, (self.seconds or self.max_seconds or 0.0) - elapsed_s)

    def describe(self) -> str:
        """`60 s`, or `until 45 °C, at most 300 s`."""
        if self.seconds is not None:
            return f"{self.seconds:g} s"
        return f"until {self.temperature_c} °C, at most {self.max_seconds:g} s"


class Turn(NamedTuple):
    """What a run is within its campaign: of which experiment (any key that tells them apart), in which cycle."""

    experiment: object
    cycle: int


class Gaps(NamedTuple):
    """The gaps of a campaign."""

    config: GapConfig | None
    cycle: GapConfig | None

    def between(self, previous: Turn, following: Turn) -> tuple[GapConfig, ...]:
        """The gaps that a run waits for after the previous run of its campaign on the same device.

        `cycle` where another cycle begins, `config` where another experiment does or the same run is tried again. Where
        both hold, both are counted from the same end, so the longer one decides; they never add up.
        """
        another_cycle = previous.cycle != following.cycle
        another_experiment = previous.experiment != following.experiment
        return tuple(
            gap
            for gap, holds in ((self.config, another_experiment or not another_cycle), (self.cycle, another_cycle))
            if gap is not None and holds
        )

    def least_s(self, previous: Turn, following: Turn) -> float:
        """How long a run waits at least, the device being as cool as may be."""
        return least_s(self.between(previous, following))


def least_s(gaps: Iterable[GapConfig]) -> float:
    """The longest of the gaps by time; one by cooling may be over at once."""
    return max((gap.seconds or 0.0 for gap in gaps), default=0.0)
