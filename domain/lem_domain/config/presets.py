"""Built-in presets: named sets of decoding values, and of values below a file's.

A backend's section in a preset applies to that backend only.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, Final, Literal, NamedTuple

from pydantic.types import JsonValue

from lem_domain.backends.registry import BACKENDS

DecodingPreset = Literal["greedy", "standard", "creative", "factual"]

DECODING_PRESETS: Final[Mapping[str, Mapping[str, float]]] = {
    "greedy": {"temperature": 0.0},
    "standard": {"temperature": 1.0, "top_p": 0.95},
    "creative": {"temperature": 0.8, "top_p": 0.9, "repetition_penalty": 1.1},
    "factual": {"temperature": 0.3},
}


def decoding_presets_in_words() -> str:
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


class Preset(NamedTuple):
    """A named set of values."""

    name: str
    description: str
    values: Mapping[str, JsonValue]


def _sections(preset: str) -> dict[str, JsonValue]:
    return {spec.name: dict(spec.presets[preset]) for spec in BACKENDS if preset in spec.presets}


_EVERY: Final = (
    Preset(
        "deterministic",
        "The same tokens and the same work in every run: greedy decoding, prompts in order, fixed output length.",
        {
            "decoding": {**DECODING_PRESETS["greedy"], "seed": 0},
            "prompts": {"order": "as_is"},
            "output": {"mode": "fixed"},
        },
    ),
    *(
        Preset(name, description, {"decoding": dict(DECODING_PRESETS[name])})
        for name, description in (
            ("greedy", "Always the most likely token."),
            ("standard", "Sampling as chat services do by default."),
            ("creative", "Sampling that avoids repetition."),
            ("factual", "Sampling close to the most likely token."),
        )
    ),
    Preset(
        "throughput",
        "As many tokens per second as possible: all requests at once, large batches, long prompts first. If a device "
        "has too little memory, `--set` a smaller batch.",
        {
            "traffic": {"mode": "offline"},
            "prompts": {"order": "longest_first"},
            **_sections("throughput"),
        },
    ),
    Preset(
        "latency",
        "One request at a time, every token's time recorded.",
        {
            "traffic": {"mode": "closed", "concurrency": 1},
            "record": {"tokens": True},
            **_sections("latency"),
        },
    ),
    Preset(
        "publication",
        "Long enough to publish: windows of 90 s, 60 s of steady state, and no run without energy or baselines. Add "
        "`execution.cycles: 5` and gaps that cool the devices; `publication` in the results lists what is missing.",
        {
            "window": {"min_duration_s": 90, "steady_min_s": 60},
            "baseline": {"enabled": True, "required": True},
            "energy": {"required": True},
        },
    ),
    Preset(
        "quick",
        "A first look in under a minute; too short for reliable figures.",
        {
            "prompts": {"sample_size": 4},
            "output": {"max_tokens": 16},
            "window": {"min_duration_s": 2},
            "warmup": {"min_requests": 2, "max_requests": 5, "window_size": 2},
            "baseline": {"min_s": 1, "max_s": 2},
        },
    ),
)


@cache
def builtin_presets() -> Mapping[str, Preset]:
    """Every built-in preset by its name."""
    return {one.name: one for one in _EVERY}
