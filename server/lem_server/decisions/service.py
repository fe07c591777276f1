"""Answers requests for decisions: reads and matches the experiments, and has a subprocess compute the statistics."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy.ext.asyncio import AsyncEngine

from lem_domain.errors import FieldProblem, ProblemCode
from lem_domain.ids import IdKind, format_id
from lem_domain.results.method import MethodVersion
from lem_domain.results.metrics import METRICS, Direction, Metric
from lem_domain.wire.decisions import (
    Allowance,
    ComparabilityCode,
    ComparabilityFinding,
    CompareRequest,
    Comparison,
    DecisionRequest,
    Gate,
    GateRequest,
)
from lem_server.aggregation.process_pool import AggregationPool
from lem_server.decisions.facts import ExperimentFacts
from lem_server.decisions.matching import Matched, match_campaigns, match_first, match_named
from lem_server.decisions.queries import DecisionScope
from lem_server.decisions.question import Question
from lem_server.decisions.reading import find_scope, read_experiments
from lem_server.http.problems import ProblemError

HEADLINES = tuple(metric for metric in METRICS if metric.heading and metric.better is not Direction.NEUTRAL)
"""The metrics of a request that names none: those of the result table that have a better direction."""


async def compare(
    engine: AsyncEngine, pool: AggregationPool, request: CompareRequest, method: MethodVersion | None
) -> Comparison:
    """Compare experiments as the request says, by their stored results.

    Raises:
        ProblemError: `not_found`; `validation`: an unknown metric, or a pair that is not of the two; `conflict`:
            nothing to compare, or too much.
    """
    question = await _question(engine, request, chosen_metrics(request.metrics, "/metrics/{}"), method)
    return await pool.call(compare_in_subprocess, question._replace(margin=request.margin))


async def gate(engine: AsyncEngine, pool: AggregationPool, request: GateRequest, method: MethodVersion | None) -> Gate:
    """Hold experiments against the limits of the request.

    Raises:
        ProblemError: as `compare`; `validation` also for a metric with two limits.
    """
    metrics = chosen_metrics([one.metric for one in request.limits], "/limits/{}/metric")
    if len(metrics) < len(request.limits):
        message = "two limits are of one metric; give one."
        problem = FieldProblem(pointer="/limits", message=message)
        raise ProblemError(ProblemCode.VALIDATION, message, errors=(problem,))
    question = await _question(engine, request, metrics, method)
    limits = tuple(one.max_regression for one in request.limits)
    return await pool.call(gate_in_subprocess, question._replace(limits=limits))


async def _question(
    engine: AsyncEngine, request: DecisionRequest, metrics: tuple[Metric, ...], method: MethodVersion | None
) -> Question:
    reference = await find_scope(engine, request.reference)
    first = await _read(engine, reference, request.reference, metrics, method)
    if request.candidate is None:
        scopes, matched = [reference], match_first(first)
    else:
        candidate = await find_scope(engine, request.candidate)
        second = await _read(engine, candidate, request.candidate, metrics, method)
        scopes, matched = [reference, candidate], _match(request, first, second)
    if not matched.pairs:
        raise ProblemError(ProblemCode.CONFLICT, _why_nothing(request, matched))
    return Question(
        matched=matched,
        metrics=metrics,
        intended=request.match,
        allow_different_work=Allowance.DIFFERENT_WORK in request.allow,
        notes=tuple(_unfinished(scope) for scope in dict.fromkeys(scopes) if scope.open_runs),
    )


def gate_in_subprocess(question: Question) -> Gate:
    """Compute the answer; runs in a subprocess."""
    from lem_server.decisions import answers  # noqa: PLC0415 - as below

    return answers.gate(question)


def compare_in_subprocess(question: Question) -> Comparison:
    """Compute the answer; runs in a subprocess."""
    from lem_server.decisions import answers  # noqa: PLC0415 - scipy takes 1.5 s, which the server's start would too

    return answers.compare(question)


def chosen_metrics(names: Sequence[str], pointer: str) -> tuple[Metric, ...]:
    """Return the metrics with these names, or whose names end with them (the job's); without any, `HEADLINES`.

    Raises:
        ProblemError: `validation`.
    """
    if not names:
        return HEADLINES
    chosen: dict[str, Metric] = {}
    problems = []
    for index, name in enumerate(names):
        exact = [metric for metric in METRICS if name == metric.name]
        found = exact or [metric for metric in METRICS if metric.name.endswith(f".{name}")]
        # The job's figure, unless that of the steady state is named in full.
        found = exact or [metric for metric in found if not metric.name.startswith("steady.")] or found
        if len(found) == 1:
            chosen[found[0].name] = found[0]
            continue
        listed = ", ".join(metric.name for metric in found or METRICS)
        what = "several metrics end with" if found else "there is no metric"
        message = f"{what} {name!r}; name one of {listed}."
        problems.append(FieldProblem(pointer=pointer.format(index), message=message))
    if problems:
        raise ProblemError(ProblemCode.VALIDATION, problems[0].message, errors=tuple(problems))
    return tuple(chosen.values())


async def _read(
    engine: AsyncEngine,
    scope: DecisionScope,
    reference: str,
    metrics: Sequence[Metric],
    method: MethodVersion | None,
) -> tuple[ExperimentFacts, ...]:
    experiment = reference if reference.startswith(IdKind.EXPERIMENT.value) else None
    return await read_experiments(engine, scope.campaign_id, metrics, experiment=experiment, method=method)


def _match(
    request: DecisionRequest, reference: Sequence[ExperimentFacts], candidate: Sequence[ExperimentFacts]
) -> Matched:
    if request.pairs:
        try:
            return match_named(reference, candidate, request.pairs)
        except KeyError as error:
            message = f"{error.args[0]} is no experiment of that side of the comparison."
            raise ProblemError(
                ProblemCode.VALIDATION, message, errors=(FieldProblem(pointer="/pairs", message=message),)
            ) from error
    if len(reference) == len(candidate) == 1:
        return Matched(((reference[0], candidate[0]),))
    if request.reference == request.candidate:
        return match_first(reference)
    return match_campaigns(reference, candidate, request.match)


def _why_nothing(request: DecisionRequest, matched: Matched) -> str:
    if request.candidate is None:
        return f"{request.reference} has one experiment; name a second campaign or experiment to compare it with."
    why = next((one.reason for one in (*matched.reference, *matched.candidate)), "one of them has no runs")
    return f"nothing in {request.candidate} can be compared with {request.reference}: {why}."


def _unfinished(scope: DecisionScope) -> ComparabilityFinding:
    campaign = format_id(IdKind.CAMPAIGN, scope.campaign_id)
    return ComparabilityFinding(
        code=ComparabilityCode.UNFINISHED,
        message=f"{scope.name} ({campaign}) has {scope.open_runs} runs to come. Intervals hold for one look at the "
        "end; looking until a difference is shown finds one too often.",
    )
