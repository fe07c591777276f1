"""The vLLM tier: what the vLLM engine can be told."""

from __future__ import annotations

from lem_domain.config.model_base import ConfigModel


class VllmConfig(ConfigModel):
    """Settings of the vLLM backend. Unset means unset: the engine's own default applies."""
