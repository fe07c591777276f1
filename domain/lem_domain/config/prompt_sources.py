"""Prompts that need no file of the user's: made to a length, or read from a dataset on the hub."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from lem_domain.config.model_base import ConfigModel, unit


class SyntheticPrompts(ConfigModel):
    """Prompts of exactly so many tokens: random ordinary tokens of the model's own tokenizer."""

    prompt_tokens: int = Field(
        ge=1, le=1_000_000, description="Length of each prompt.", json_schema_extra=unit("tokens")
    )
    spread: int = Field(
        default=0,
        ge=0,
        le=1_000_000,
        description="Lengths are drawn evenly from prompt_tokens - spread to prompt_tokens + spread.",
        json_schema_extra=unit("tokens"),
    )
    count: int = Field(
        default=32, ge=1, le=100_000, description="How many prompts are made.", json_schema_extra=unit("prompts")
    )
    seed: int = Field(default=0, ge=0, le=2**63 - 1, description="Seed of lengths and tokens.")

    @model_validator(mode="after")
    def _spread_leaves_a_token(self) -> Self:
        if self.spread >= self.prompt_tokens:
            raise ValueError(
                f"spread {self.spread} leaves prompts of no tokens; keep it below prompt_tokens {self.prompt_tokens}"
            )
        return self


class HuggingFacePrompts(ConfigModel):
    """Prompts from a dataset that the worker reads with the `datasets` library."""

    dataset: str = Field(
        min_length=1,
        max_length=512,
        description="A dataset's hub id, or a folder of data files on the worker's machine.",
    )
    subset: str | None = Field(
        default=None, min_length=1, max_length=200, description="The dataset's configuration, where it has several."
    )
    split: str = Field(default="train", min_length=1, max_length=200, description="Which split of it.")
    column: str = Field(default="text", min_length=1, max_length=200, description="The column that holds the prompt.")
    revision: str | None = Field(
        default=None, min_length=1, max_length=200, description="Branch, tag or commit on the hub."
    )
