"""Wire models of decisions: means with intervals, and the comparison of experiments in words."""

from __future__ import annotations

from enum import StrEnum
from typing import Final, Literal

from pydantic import Field
from pydantic.types import JsonValue

from lem_domain.ids import CampaignId, ExperimentId, Sha256
from lem_domain.results.metrics import Direction
from lem_domain.wire.base import AnswerModel, RequestModel

COMPARISON_VERSION: Final = 1
"""Version of `Comparison`. Fields may be added; a field that changes its meaning or is removed raises it."""


GATE_VERSION: Final = 1
"""Version of `Gate`, in the same way."""


class ConfidenceInterval(AnswerModel):
    """Both ends of an interval, in the unit of the estimate."""

    low: float
    high: float


class MeanEstimate(AnswerModel):
    """One metric of one experiment over its cycles."""

    n: int = Field(ge=0, description="Cycles that have the figure.")
    mean: float | None
    sd: float | None = Field(description="Sample standard deviation (n - 1); null below two values.")
    cv: float | None = Field(description="sd / |mean|; null if the mean is 0.")
    interval: ConfidenceInterval | None = Field(description="The 95 % interval of the mean.")
    interval_method: Literal["student_t", "bca"] | None = Field(
        description="Student's t below 10 values; from 10 on a BCa bootstrap with the width of Student's t."
    )
    reason: Literal["too_few_cycles"] | None = Field(description="Why there is no interval: fewer than 3 values.")


class ComparisonWord(StrEnum):
    """What a comparison of one metric shows."""

    BETTER = "better"
    """The candidate is better: the widened interval excludes no difference, after Holm's correction."""
    WORSE = "worse"
    """The candidate is worse, shown in the same way."""
    DIFFERENT = "different"
    """The same, of a metric for which neither direction is better."""
    EQUIVALENT = "equivalent"
    """The widened interval lies within the margin that the request names, after Holm's correction."""
    NO_DIFFERENCE_SHOWN = "no_difference_shown"
    """None of these is shown. It does not mean that the two are equal."""
    NOT_ENOUGH_EVIDENCE = "not_enough_evidence"
    """Fewer than 3 pairs, or 3 cycles of either."""
    NOT_COMPARABLE = "not_comparable"
    """`reason` says why."""


class SystematicError(AnswerModel):
    """What the energy sensor and its samples leave open in an estimate; more cycles don't reduce the sensor's part.

    Shifts of the estimate: of a ratio relative to it, of a difference in the unit of the metric.
    """

    same_sensor: bool = Field(description="Both were measured by the same sensors: their gain cancels in a ratio.")
    sensor: ConfidenceInterval = Field(
        description="Smallest and largest shift by gain and offset of the sensors, and where they disagree."
    )
    sampling: float = Field(ge=0, description="By what the samples leave open, in quadrature over cycles.")
    unpublished: bool = Field(description="The offset of a sensor is not published, so that `sensor` lacks its part.")


class EffectSize(AnswerModel):
    """A difference in units of the spread over cycles, on the scale of the estimate (logarithms for a ratio)."""

    kind: Literal["hedges_g", "d_z"] = Field(
        description="Unpaired: Hedges' g with the correction for small samples; pairs: their mean difference / its sd."
    )
    value: float


class CyclesNeeded(AnswerModel):
    """How many cycles would decide, from the spread that was observed."""

    purpose: Literal["difference", "limit"] = Field(
        description="To show `difference`, or to decide a limit that the estimate is `difference` away from."
    )
    difference: float = Field(description="Relative, or in the unit of the metric where it is compared by difference.")
    power: float = Field(description="Chance to show it with so many cycles.")
    cycles: int | None = Field(description="Cycles of each experiment in all; null if no number does.")
    more: int | None = Field(description="How many are missing.")
    reason: str | None = Field(default=None, description="Why no number does.")


class MetricComparison(AnswerModel):
    """One metric of a candidate compared with the reference."""

    metric: str = Field(description="Dotted path into RunResult.")
    unit: str
    better: Direction = Field(description="Which direction is better.")
    scale: Literal["ratio", "difference"] = Field(
        description="candidate / reference; or candidate − reference, in `unit`, of metrics that can be 0 or negative."
    )
    design: Literal["paired", "unpaired"] = Field(
        description="Pairs are the same cycle of one campaign on the same devices."
    )
    reference: MeanEstimate
    candidate: MeanEstimate
    pairs: int | None = Field(description="Number of pairs; null if unpaired.")
    estimate: float | None = Field(description="Ratio of geometric means, or difference of means.")
    statistical: ConfidenceInterval | None = Field(description="95 % interval from the spread over cycles alone.")
    widened: ConfidenceInterval | None = Field(
        description="The same, widened by `systematic`; the words follow from this one."
    )
    systematic: SystematicError | None = Field(description="Null for metrics without energy or without a bound.")
    p_value: float | None = Field(description="Of no difference, widened as the interval is.")
    p_adjusted: float | None = Field(description="The same after Holm's correction over all metrics and pairs.")
    effect: EffectSize | None
    margin: float | None = Field(description="Of equivalence, as the request has it: relative to the reference.")
    word: ComparisonWord
    reason: str | None = Field(default=None, description="Why it is not comparable, or what evidence is missing.")
    cycles_needed: CyclesNeeded | None = Field(
        default=None, description="Where no difference is shown: for the margin, or for the observed difference."
    )


class ComparedExperiment(AnswerModel):
    """An experiment in a comparison."""

    experiment_id: ExperimentId
    campaign_id: CampaignId
    display_name: str
    config_hash: Sha256
    cycles: tuple[int, ...] = Field(description="Cycles that are in the comparison.")
    excluded_cycles: tuple[int, ...] = Field(description="Cycles whose result is invalid; they are in no figure.")
    questionable_cycles: tuple[int, ...] = Field(description="Cycles that are in, with a questionable result.")


class ConfigDifference(AnswerModel):
    """A value in which two experiments differ."""

    part: Literal["requested", "effective", "environment"]
    path: str
    reference: JsonValue
    candidate: JsonValue


class ComparabilityCode(StrEnum):
    """Why two experiments are not, or only with care, comparable."""

    DIFFERENT_WORK = "different_work"
    """Other prompts, model or number of output tokens, or worse quality: no word unless it is allowed."""
    DIFFERENT_DEVICE = "different_device"
    """The energy is of other sensors: gains and offsets are taken as independent."""
    DIFFERENT_TIME = "different_time"
    """Measured on different days: variation between days is in no interval."""
    MORE_THAN_INTENDED = "more_than_intended"
    """Something differs that the user did not vary."""
    UNFINISHED = "unfinished"
    """Runs are still to come."""
    EXCLUDED_CYCLES = "excluded_cycles"
    QUESTIONABLE_CYCLES = "questionable_cycles"
    SENSOR_UNKNOWN = "sensor_unknown"
    """Energy without a bound, or of a sensor whose accuracy is not published."""


class ComparabilityFinding(AnswerModel):
    """Something that a reader of the comparison must know."""

    code: ComparabilityCode
    message: str = Field(description="The observation, then what follows from it.")


class ExperimentComparison(AnswerModel):
    """A candidate compared with its reference: first what differs, then every metric."""

    reference: ComparedExperiment
    candidate: ComparedExperiment
    differences: tuple[ConfigDifference, ...]
    findings: tuple[ComparabilityFinding, ...]
    metrics: tuple[MetricComparison, ...]


class UnmatchedExperiment(AnswerModel):
    """An experiment without a partner."""

    experiment_id: ExperimentId
    display_name: str
    reason: str


class Comparison(AnswerModel):
    """Answer of a comparison."""

    schema_version: Literal[1] = COMPARISON_VERSION
    confidence: float = Field(description="Of every interval; the words err in at most 1 − confidence of requests.")
    tests: int = Field(ge=0, description="Metrics × pairs that the correction is over.")
    comparisons: tuple[ExperimentComparison, ...]
    unmatched_reference: tuple[UnmatchedExperiment, ...]
    unmatched_candidate: tuple[UnmatchedExperiment, ...]


class Allowance(StrEnum):
    """What a user accepts although it makes a comparison doubtful."""

    DIFFERENT_WORK = "different_work"


class ComparedPair(RequestModel):
    """Two experiments that are to be compared, whatever they are."""

    reference: ExperimentId
    candidate: ExperimentId


class DecisionRequest(RequestModel):
    """Which experiments to compare.

    Two campaigns are matched by their configurations; `match` names the keys that are meant to differ. Two experiments
    are one pair. Without a candidate the first experiment of the reference's campaign is compared with all others.
    """

    reference: CampaignId | ExperimentId
    candidate: CampaignId | ExperimentId | None = None
    match: tuple[str, ...] = Field(
        default=(), max_length=100, description="Dotted keys that differ between the campaigns on purpose."
    )
    pairs: tuple[ComparedPair, ...] = Field(
        default=(), max_length=1000, description="Explicit pairs of experiments of the two, in place of matching."
    )
    allow: tuple[Allowance, ...] = Field(default=(), description="Give words all the same.")


class CompareRequest(DecisionRequest):
    """What to compare, in which metrics."""

    metrics: tuple[str, ...] = Field(
        default=(), max_length=100, description="Names or their last parts; without any, the headline metrics."
    )
    margin: float | None = Field(
        default=None, gt=0, lt=1, description="Differences below this fraction of the reference don't matter."
    )


class GateLimit(RequestModel):
    """A regression that is allowed."""

    metric: str = Field(description="Name of a metric or its last part.")
    max_regression: float = Field(gt=0, lt=1, description="As a fraction of the reference.")


class GateRequest(DecisionRequest):
    """What to compare, and by how much the candidate may be worse."""

    limits: tuple[GateLimit, ...] = Field(min_length=1, max_length=100)


class GateOutcome(StrEnum):
    """Whether a candidate stays within the allowed regressions."""

    PASSED = "passed"
    """The whole widened interval of every metric is within its limit."""
    REGRESSED = "regressed"
    """That of a metric is wholly beyond its limit, after Holm's correction."""
    NOT_ENOUGH_EVIDENCE = "not_enough_evidence"


class GateMetric(AnswerModel):
    """One metric of a gate."""

    comparison: MetricComparison
    limit: float = Field(description="Allowed regression, as a fraction of the reference.")
    outcome: GateOutcome
    cycles_needed: CyclesNeeded | None = Field(description="What would decide, where the evidence is not enough.")


class GateExperiment(AnswerModel):
    """A candidate held against the limits."""

    reference: ComparedExperiment
    candidate: ComparedExperiment
    differences: tuple[ConfigDifference, ...]
    findings: tuple[ComparabilityFinding, ...]
    metrics: tuple[GateMetric, ...]


class Gate(AnswerModel):
    """Answer of a gate."""

    schema_version: Literal[1] = GATE_VERSION
    confidence: float = Field(description="A gate errs in at most 1 − confidence of requests.")
    outcome: GateOutcome = Field(description="An experiment of the reference without a partner never passes.")
    experiments: tuple[GateExperiment, ...]
    unmatched_reference: tuple[UnmatchedExperiment, ...]
    unmatched_candidate: tuple[UnmatchedExperiment, ...]
