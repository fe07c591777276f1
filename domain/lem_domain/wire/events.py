"""Events of a campaign or run as Server-Sent Events, which `Last-Event-ID` resumes."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import Field

from lem_domain.ids import AttemptId, RunId
from lem_domain.states import RunState
from lem_domain.wire.base import AnswerModel
from lem_domain.wire.campaigns import CampaignView
from lem_domain.wire.runs import Progress


class RunTransitionEvent(AnswerModel):
    """`event: transition`; carries an event id."""

    type: Literal["transition"] = "transition"
    run_id: RunId
    display_name: str
    cycle: int
    source: RunState | None
    target: RunState
    at: datetime
    reason: str | None
    message: str | None


class RunProgressEvent(AnswerModel):
    """`event: progress`; not stored, so it has no event id."""

    type: Literal["progress"] = "progress"
    run_id: RunId
    attempt_id: AttemptId
    display_name: str
    cycle: int
    progress: Progress


class AggregationEvent(AnswerModel):
    """`event: aggregation`; momentary, without an event id: how many runs a `:aggregate` of the campaign has done.

    Sent by the server process that received the request, which keeps the campaign's stream open meanwhile.
    """

    type: Literal["aggregation"] = "aggregation"
    total: int = Field(description="Runs that were to be aggregated when the request began.")
    done: int = Field(description="Runs that have an outcome.")
    failed: int = Field(description="Runs among them that could not be aggregated.")


class CampaignEvent(AnswerModel):
    """`event: campaign`; sent at the start and whenever its counts change. `settled`: no run is queued or live."""

    type: Literal["campaign"] = "campaign"
    campaign: CampaignView
    settled: bool = Field(description="No run is queued or live.")
