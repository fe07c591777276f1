"""The requests of one run with the energy of each, on request (docs/measurement.md, Energy per request)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from lem_domain.evidence.streams import ProcessName
from lem_domain.ids import AttemptId, RunId
from lem_domain.results.figures import Distribution, EnergyFigure, Figure, ResultModel


class RequestRow(ResultModel):
    """One request of the window. Its fields are the columns of the table in every format, in this order."""

    process: ProcessName
    request_id: int = Field(description="Number of the request within its process.")
    prompt_index: int = Field(description="Index into the experiment's list of prompts.")
    arrival_ns: int = Field(description="As all times here as recorded: CLOCK_MONOTONIC of the worker's host.")
    scheduled_ns: int | None = Field(description="When the engine began to work on it, if it reports that.")
    first_token_ns: int | None
    last_token_ns: int | None
    prompt_tokens: int
    cached_prompt_tokens: int | None
    generated_tokens: int
    failed: bool = Field(description="Whether the engine gave it up.")
    energy_j: float | None = Field(
        description="Its share of the window's energy. Null if no token of it has a time, or for the summary's reason."
    )
    bound_j: float | None = Field(
        description="By how much the readings leave its energy open; null if the window's energy has no bound."
    )


class RequestEnergySummary(ResultModel):
    """The energy of all requests of a run together.

    finished_energy_j + failed_energy_j + idle_energy_j is the window's energy.
    """

    run_id: RunId
    attempt_id: AttemptId
    method: str = Field(description="Version of the formulas.")
    weights: Literal["flops", "tokens"] = Field(
        description="What the work of a step is counted in: FLOPs, or tokens if a rank did not report its model."
    )
    total: EnergyFigure = Field(description="The job's energy in the window, which is divided.")
    requests: int = Field(ge=0, description="All requests of the window.")
    failed_requests: int = Field(ge=0)
    without_energy: int = Field(ge=0, description="Requests whose energy is null.")
    finished_energy_j: Figure
    failed_energy_j: Figure
    idle_energy_j: Figure = Field(description="While no engine worked on a request; it belongs to none.")
    per_request_j: Distribution = Field(description="Over the finished requests that have an energy.")
    resolution_ms: Figure = Field(
        description="The time between readings; what is shorter shares the energy around it evenly."
    )


class RequestTable(ResultModel):
    """The requests of one run, in order of process and number."""

    summary: RequestEnergySummary
    requests: tuple[RequestRow, ...]
