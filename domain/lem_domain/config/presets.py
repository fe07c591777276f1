"""Named sets of values that stand below a file's own; a section counts where its backend is used."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Final, NamedTuple

from pydantic.types import JsonValue


class Preset(NamedTuple):
    """Values under a name."""

    name: str
    description: str
    values: Mapping[str, JsonValue]


_EVERY: Final = (
    Preset(
        "deterministic",
        "The same tokens and the same work in every run: greedy, in the prompts' order, of exact length.",
        {
            "decoding": {"temperature": 0, "seed": 0},
            "prompts": {"order": "as_is"},
            "output": {"mode": "fixed"},
        },
    ),
    Preset("greedy", "Always the likeliest token.", {"decoding": {"temperature": 0}}),
    Preset("standard", "Sampling as chat services do by default.", {"decoding": {"temperature": 1.0, "top_p": 0.95}}),
    Preset(
        "creative",
        "Sampling that avoids repetition.",
        {"decoding": {"temperature": 0.8, "top_p": 0.9, "repetition_penalty": 1.1}},
    ),
    Preset("factual", "Sampling close to the likeliest token.", {"decoding": {"temperature": 0.3}}),
    Preset(
        "throughput",
        "As many tokens per second as possible: everything at once, large batches, long prompts first.",
        {
            "traffic": {"mode": "offline"},
            "prompts": {"order": "longest_first"},
            "pytorch": {"batch_size": 32},
            "simulated": {"batch_size": 32},
        },
    ),
    Preset(
        "latency",
        "One request at a time, every token's time recorded.",
        {
            "traffic": {"mode": "closed", "concurrency": 1},
            "record": {"tokens": True},
            "pytorch": {"batch_size": 1},
            "simulated": {"batch_size": 1},
        },
    ),
    Preset(
        "quick",
        "A look in under a minute; too short for figures to be believed.",
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
