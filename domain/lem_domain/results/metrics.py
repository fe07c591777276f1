"""The table of metrics: one entry per number that results summarise, tables show and the reference documents.

An entry's name is its path in `RunResult`. To add a metric: compute its field, add an entry here and test its formula.
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

from lem_domain.results.figures import Distribution, EnergyFigure, Figure
from lem_domain.results.run import RunResult


class Direction(StrEnum):
    """Whether a smaller or a larger value is better."""

    LOWER = "lower"
    HIGHER = "higher"
    NEUTRAL = "neutral"


class MetricValue(NamedTuple):
    """A metric of one run, or why it has none."""

    value: float | None
    reason: str | None = None


class Metric(NamedTuple):
    """One metric: its path in `RunResult`, unit, better direction, and definition for the reference.

    `label` is its line in `lemctl show`; metrics without one are in a block of the page that shows their parts.
    `heading` is its column in the result table of a campaign; with `optional` it is left out if no experiment has a
    value. `per_energy` names the energy whose relative error bound
    it shares. Every metric is summarised over cycles by mean, sample standard deviation and their ratio.
    """

    name: str
    unit: str
    better: Direction
    definition: str
    label: str | None = None
    heading: str | None = None
    optional: bool = False
    per_energy: str | None = None

    @property
    def distribution(self) -> str | None:
        """The path of the distribution that the metric is the mean of; None for others."""
        path, _, last = self.name.rpartition(".")
        return path if last == "mean" else None

    def read(self, result: RunResult) -> MetricValue:
        """Return the metric's value in a result."""
        found = field_of(result, self.distribution or self.name)
        if isinstance(found, Distribution):
            return MetricValue(found.mean, found.reason)
        if isinstance(found, Figure):
            return MetricValue(found.value, found.reason)
        if isinstance(found, EnergyFigure):
            return MetricValue(found.joules, found.reason)
        if isinstance(found, int | float):
            return MetricValue(float(found))
        raise TypeError(f"{self.name} of a result is {found!r}, which is no number; correct its entry.")


def field_of(result: RunResult, path: str) -> object:
    """Return the field at a dotted path of a result."""
    found: object = result
    for name in path.split("."):
        found = getattr(found, name)
    return found


_LOWER, _HIGHER, _NEUTRAL = Direction.LOWER, Direction.HIGHER, Direction.NEUTRAL

PRIMARY = Metric(
    "efficiency.energy_per_output_token_j",
    "J",
    _LOWER,
    "energy.total / work.generated_tokens",
    "per output token",
    heading="energy per output token",
    per_energy="energy.total",
)

METRICS: tuple[Metric, ...] = (
    PRIMARY,
    Metric(
        "efficiency.energy_per_request_j",
        "J",
        _LOWER,
        "energy.total / finished requests",
        "per request",
        per_energy="energy.total",
    ),
    Metric(
        "efficiency.output_tokens_per_j", "1/J", _HIGHER, "work.generated_tokens / energy.total", "tokens per joule"
    ),
    Metric(
        "efficiency.energy_delay_product_js", "J·s", _LOWER, "energy per request × mean E2E latency", "energy × delay"
    ),
    Metric(
        "efficiency.energy_per_prompt_token_j",
        "J",
        _LOWER,
        "energy.phases.prefill.energy / work.prompt_tokens",
        "per prompt token",
    ),
    Metric(
        "efficiency.net_energy_per_output_token_j",
        "J",
        _LOWER,
        "energy.net / work.generated_tokens",
        "net per token",
        per_energy="energy.net",
    ),
    Metric(
        "efficiency.energy_per_output_token_without_constant_j",
        "J",
        _LOWER,
        "energy.without_constant / work.generated_tokens; null where no part of the energy is a model's constant",
        "token, no constant",
        heading="energy per token, no constant",
        optional=True,
        per_energy="energy.without_constant",
    ),
    Metric(
        "steady.energy_per_output_token_j",
        "J",
        _LOWER,
        "steady.energy / steady.generated_tokens: while every engine was full",
        "per output token",
        heading="energy per token, steady",
        optional=True,
        per_energy="steady.energy",
    ),
    Metric("steady.output_rate_tok_s", "tok/s", _HIGHER, "steady.generated_tokens / steady.duration_s", "output rate"),
    Metric(
        "speed.output_rate_tok_s",
        "tok/s",
        _HIGHER,
        "work.generated_tokens / window.duration_s",
        "output rate",
        heading="output tok/s",
    ),
    Metric(
        "speed.total_rate_tok_s",
        "tok/s",
        _HIGHER,
        "(prompt + generated tokens) / window.duration_s",
        "with prompt tokens",
    ),
    Metric("speed.request_rate_per_s", "1/s", _HIGHER, "finished requests / window.duration_s", "requests"),
    Metric(
        "speed.goodput_per_s", "1/s", _HIGHER, "finished requests within `traffic.slo` / window.duration_s", "goodput"
    ),
    Metric("speed.ttft_ms.mean", "ms", _LOWER, "first token − arrival, per request", "TTFT", heading="TTFT ms"),
    Metric(
        "speed.itl_ms.mean",
        "ms",
        _LOWER,
        "differences of successive token times of one request",
        "ITL",
        heading="ITL ms",
    ),
    Metric("speed.tpot_ms.mean", "ms", _LOWER, "(last − first token) / (generated − 1), per request", "TPOT"),
    Metric("speed.e2e_ms.mean", "ms", _LOWER, "last token − arrival, per request", "E2E"),
    Metric("speed.queue_ms.mean", "ms", _LOWER, "scheduled − arrival, per request", "queue"),
    Metric("energy.total", "J", _LOWER, "the job's energy: the sum over the parts that `energy.includes` lists"),
    Metric(
        "energy.constant", "J", _NEUTRAL, "the part of energy.total that a model takes as constant, whatever the load"
    ),
    Metric("energy.without_constant", "J", _LOWER, "energy.total − energy.constant"),
    Metric("energy.net", "J", _LOWER, "energy.total − power of the ready baseline × window.duration_s"),
    Metric("energy.phases.prefill.energy", "J", _LOWER, "from a batch's begin to its first token, or by a probe"),
    Metric("energy.phases.decode.energy", "J", _LOWER, "from a batch's first token to its last, or by a probe"),
    Metric(
        "energy.mean_power_w",
        "W",
        _NEUTRAL,
        "energy.total / window.duration_s",
        "mean power",
        heading="mean W",
    ),
    Metric("energy.gpu", "J", _LOWER, "the sum over the leased accelerators"),
    Metric("energy.cpu", "J", _LOWER, "the sum over the host's CPU packages"),
    Metric("energy.dram", "J", _LOWER, "the sum over the host's memory"),
    Metric(
        "compute.flops",
        "FLOP",
        _NEUTRAL,
        "2 × N_active × processed tokens + 4 × layers × attention width × context lengths, an estimate",
    ),
    Metric("compute.mfu", "1", _HIGHER, "compute.flops / (window.duration_s × dense peak of the devices)"),
    Metric("window.duration_s", "s", _NEUTRAL, "first release to last token, the union over all processes"),
    Metric("work.generated_tokens", "tokens", _NEUTRAL, "generated tokens of finished requests"),
)
"""Every metric, in the order in which summaries list them. The first is the primary metric."""
