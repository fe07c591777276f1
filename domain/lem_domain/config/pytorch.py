"""The PyTorch tier: what the transformers backend can be told."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from lem_domain.config.model_base import ConfigModel, engine_parameter


class PyTorchConfig(ConfigModel):
    """Settings of the PyTorch backend (transformers 5). Unset means unset: the engine's own default applies."""

    batch_size: int = Field(
        default=1,
        ge=1,
        le=4096,
        description="Requests that are decoded together, in lockstep.",
        json_schema_extra=engine_parameter("rows of input_ids", unit="requests"),
    )
    attn_implementation: Literal["eager", "sdpa"] | None = Field(
        default=None,
        description="The attention kernel family.",
        json_schema_extra=engine_parameter("attn_implementation"),
    )
    num_threads: int | None = Field(
        default=None,
        ge=1,
        le=1024,
        description="CPU threads inside one operator.",
        json_schema_extra=engine_parameter("torch.set_num_threads", unit="threads"),
    )
