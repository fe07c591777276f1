"""Carbon and cost of a run's energy, and the perplexity of its model."""

from __future__ import annotations

from pydantic import Field

from lem_domain.ids import Sha256
from lem_domain.results.figures import Figure, ResultModel


class FootprintResult(ResultModel):
    """Carbon and cost of the job's energy over the window; each is null without its factor."""

    carbon: Figure = Field(description="Energy × PUE × carbon intensity, in gCO2e.")
    carbon_per_output_token: Figure
    carbon_from: str | None = Field(default=None, description="The factors and their sources.")
    cost: Figure = Field(description="Energy × PUE × price, in the currency of the price.")
    cost_per_output_token: Figure
    cost_from: str | None = Field(default=None, description="The factors and their sources.")


class QualityResult(ResultModel):
    """How well the model predicts a reference text, measured after the window."""

    perplexity: Figure = Field(description="exp(mean negative log-likelihood per predicted token).")
    tokens: int = Field(ge=0, description="Predicted tokens.")
    text: str | None = Field(default=None, description="Name of the reference text.")
    text_sha256: Sha256 | None = None
