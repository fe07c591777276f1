"""How the figures of one run would spread if its window were shorter (docs/measurement.md, Length of the window)."""

from __future__ import annotations

from typing import Final, Literal

from pydantic import Field

from lem_domain.ids import AttemptId, RunId
from lem_domain.results.figures import Figure, ResultModel

DEFAULT_LENGTHS_S: Final = (5.0, 10.0, 20.0, 30.0, 60.0)
DEFAULT_TARGET: Final = 0.02


class StudiedLength(ResultModel):
    """Windows of one length, cut out of the run's."""

    length_s: float
    windows: int = Field(ge=0, description="Windows of this length, one after another, without overlap.")
    energy_per_output_token_j: Figure = Field(description="Mean over them.")
    cv: Figure = Field(description="Sample standard deviation / mean of the energy per output token over them.")
    bound: Figure = Field(
        description="Mean relative bound without the sensor's gain and offset: what longer windows make smaller."
    )
    steady_share: Figure = Field(
        description="Share of a window of this length that would be steady, with the run's ramp-up and drain."
    )


class WindowStudy(ResultModel):
    """Spread and bound by the length of the window, from one run.

    Windows of one run share its load, warm-up and heat: the spread between cycles is not smaller, and may be larger.
    """

    run_id: RunId
    attempt_id: AttemptId
    method: str = Field(description="Version of the formulas.")
    within: Literal["steady_state", "window"] = Field(
        description="What is cut: the steady state, or the whole window if there is none."
    )
    duration_s: float = Field(description="Its length.")
    lengths: tuple[StudiedLength, ...]
    target: float = Field(description="The largest spread and bound that are wanted, relative to the energy per token.")
    shortest_s: Figure = Field(
        description="The shortest length from which on spread and bound (if there is one) are within the target."
    )
