"""Prompts without a file: generated to a length, or read from a dataset on the Hugging Face Hub."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from lem_domain.config.model_base import ConfigModel, unit


class SyntheticPrompts(ConfigModel):
    """Prompts of an exact length: random ordinary tokens of the model's tokenizer."""

    prompt_tokens: int = Field(
        ge=1, le=1_000_000, description="Length of each prompt.", json_schema_extra=unit("tokens")
    )
    spread: int = Field(
        default=0,
        ge=0,
        le=1_000_000,
        description="Lengths are drawn uniformly from prompt_tokens - spread to prompt_tokens + spread.",
        json_schema_extra=unit("tokens"),
    )
    count: int = Field(
        default=32, ge=1, le=100_000, description="Number of prompts.", json_schema_extra=unit("prompts")
    )
    seed: int = Field(default=0, ge=0, le=2**63 - 1, description="Seed of lengths and tokens.")

    @model_validator(mode="after")
    def _spread_leaves_a_token(self) -> Self:
        if self.spread >= self.prompt_tokens:
            raise ValueError(
                f"spread {self.spread} allows prompts without tokens; keep it below prompt_tokens {self.prompt_tokens}"
            )
        return self


class HuggingFacePrompts(ConfigModel):
    """Prompts from a dataset that the worker reads with the `datasets` library."""

    dataset: str = Field(
        min_length=1,
        max_length=512,
        description="Hub id of a dataset, or a folder of data files on the worker's machine.",
    )
    subset: str | None = Field(
        default=None, min_length=1, max_length=200, description="The dataset's configuration, if it has several."
    )
    split: str = Field(default="train", min_length=1, max_length=200, description="The dataset's split.")
    column: str = Field(default="text", min_length=1, max_length=200, description="Column with the prompt.")
    revision: str | None = Field(
        default=None, min_length=1, max_length=200, description="Branch, tag or commit on the Hub."
    )
