"""Prompts without a file: generated to a length, or read from a dataset on the Hugging Face Hub."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from lem_domain.config.model_base import ConfigModel, extras, key


class SyntheticPrompts(ConfigModel):
    """Prompts of an exact length: random ordinary tokens of the model's tokenizer."""

    prompt_tokens: int = Field(
        ge=1, le=1_000_000, description="Length of each prompt.", json_schema_extra=extras(unit="tokens")
    )
    spread: int = key(
        0,
        "Lengths are drawn uniformly from prompt_tokens - spread to prompt_tokens + spread.",
        ge=0,
        le=1_000_000,
        unit="tokens",
    )
    count: int = key(32, "Number of prompts.", ge=1, le=100_000, unit="prompts")
    seed: int = key(0, "Seed of lengths and tokens.", ge=0, le=2**63 - 1)

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
    subset: str | None = key(None, "The dataset's configuration, if it has several.", min_length=1, max_length=200)
    split: str = key("train", "The dataset's split.", min_length=1, max_length=200)
    column: str = key("text", "Column with the prompt.", min_length=1, max_length=200)
    revision: str | None = key(None, "Branch, tag or commit on the Hub.", min_length=1, max_length=200)
