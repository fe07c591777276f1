"""Decoding presets: named sets of decoding values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal

DecodingPreset = Literal["greedy", "standard", "creative", "factual"]

DECODING_PRESETS: Final[Mapping[str, Mapping[str, float]]] = {
    "greedy": {"temperature": 0.0},
    "standard": {"temperature": 1.0, "top_p": 0.95},
    "creative": {"temperature": 0.8, "top_p": 0.9, "repetition_penalty": 1.1},
    "factual": {"temperature": 0.3},
}


def description() -> str:
    """Every preset with its values: `greedy: temperature 0; standard: …`."""
    return "; ".join(
        f"{name}: {', '.join(f'{key} {value:g}' for key, value in values.items())}"
        for name, values in DECODING_PRESETS.items()
    )


def expand_decoding(value: Any) -> Any:
    """The value of `decoding` with the name of a preset replaced by its values; written values take precedence.

    An unknown name, or a value that is neither text nor map, is returned unchanged, and validation refuses it.
    """
    if isinstance(value, str):
        value = {"preset": value}
    if not isinstance(value, Mapping):
        return value
    preset = value.get("preset")
    if not isinstance(preset, str) or preset not in DECODING_PRESETS:
        return value
    return {**DECODING_PRESETS[preset], **{key: inner for key, inner in value.items() if key != "preset"}}
