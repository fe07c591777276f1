"""Text for `lemctl show`: resources line by line, and every figure of a result with its method and bound."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime

from pydantic.types import JsonValue

from lem_client.render import energy_report
from lem_client.render.numbers import MISSING, duration, number, quantity
from lem_client.render.schedule import execution_summary
from lem_domain.config.documents import flattened
from lem_domain.config.provenance import Source
from lem_domain.results.figures import Distribution, EnergyFigure, Figure
from lem_domain.results.findings import Severity
from lem_domain.results.method import MethodVersion
from lem_domain.results.metrics import METRICS, field_of
from lem_domain.results.run import RunResult
from lem_domain.states import RunState
from lem_domain.wire.campaigns import CampaignView, ExperimentView
from lem_domain.wire.runs import (
    AttemptView,
    EffectiveConfig,
    LeaseEventKind,
    LeaseEventView,
    RunView,
    TransitionView,
)
from lem_domain.wire.workers import WorkerView

_SEVERITIES = {Severity.NOTE: "note", Severity.WARNING: "warning", Severity.ERROR: "error"}


def local_time(at: datetime) -> str:
    """Format a time in the local zone, to the second."""
    return at.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def run_counts(campaign: CampaignView) -> str:
    """`4 aggregated, 1 failed`."""
    present = [f"{count} {state.value}" for state in RunState if (count := getattr(campaign.runs, state.value))]
    return ", ".join(present) or "none"


def campaign(one: CampaignView) -> list[str]:
    """Return a campaign's lines."""
    execution = one.execution
    lines = [
        f"campaign    {one.name}",
        f"id          {one.id}",
        f"state       {one.state.value}",
        f"runs        {run_counts(one)}",
        f"experiments {one.experiments}, {execution.cycles} cycles",
        f"order       {execution_summary(execution)}",
        f"submitted   {local_time(one.created_at)} by {one.submitted_by}",
    ]
    if one.imported is not None:
        lines.append(
            f"imported    {local_time(one.imported.imported_at)} by {one.imported.imported_by}: a record of "
            f"measurements on another server (bundle sha256 {one.imported.bundle_sha256})"
        )
    if one.placement != execution.placement:
        lines.append(f"placement   {one.placement}, instead of the submitted {execution.placement}")
    for place in one.places:
        left = "" if place.ended_at is None else f", until {local_time(place.ended_at)} ({place.ended_by} moved it)"
        lines.append(f"placed on   {place.name} ({', '.join(place.devices)}) since {local_time(place.placed_at)}{left}")
    if one.waiting is not None:
        lines.append(f"waiting     {one.waiting.message}")
    if one.labels:
        lines.append(f"labels      {', '.join(f'{key}={value}' for key, value in one.labels.items())}")
    if one.metadata:
        lines += ["", "Metadata", *values(one.metadata)]
    return lines


def experiment(one: ExperimentView) -> list[str]:
    """Return an experiment's lines with its whole configuration."""
    config = one.config.model_dump(mode="json", exclude_none=True)
    return [
        f"experiment  {one.display_name}",
        f"id          {one.id}",
        f"campaign    {one.campaign_id}",
        f"hash        {one.config_hash}",
        "",
        "Configuration",
        *values(config),
        "",
        "Set by (values that are not listed are defaults)",
        *provenance(one),
    ]


def provenance(one: ExperimentView) -> list[str]:
    """Return a line for every value that is not a default, with its origin."""
    set_values = [value for value in one.provenance or () if value.source is not Source.DEFAULT]
    return [
        f"  {value.path:<34} {_value(value.value):<20} {value.source.value.replace('_', ' ')} {value.detail}".rstrip()
        for value in set_values
    ]


def worker(one: WorkerView) -> list[str]:
    """Return a worker's lines."""
    lines = [
        f"worker      {one.name}",
        f"id          {one.id}",
        f"state       {one.state.value}, last seen {local_time(one.last_seen_at)}",
        f"host        {one.host}",
        f"backend     {one.backend}",
        f"devices     {', '.join(f'{device.name} ({device.kind.value}, {device.uuid})' for device in one.devices)}",
        f"runs        {', '.join(one.current_runs) or 'none'}",
    ]
    lines += [f"{name:<11} {version}" for name, version in sorted(one.versions.items())]
    return lines


def run(one: RunView) -> list[str]:
    """Return a run's lines."""
    lines = [
        f"run         {one.display_name}, cycle {one.cycle}",
        f"id          {one.id}",
        f"campaign    {one.campaign_id}",
        f"state       {one.state.value}{' (cancel requested)' if one.cancel_requested else ''}",
        f"backend     {one.backend}",
    ]
    if one.reason or one.message:
        lines.append(f"why         {' – '.join(part for part in (one.reason, one.message) if part)}")
    if one.progress is not None:
        now = one.progress
        lines.append(f"now         {now.phase}, {now.requests_done} requests, {now.generated_tokens} tokens")
    return lines


def history(
    transitions: Sequence[TransitionView],
    lease_events: Sequence[LeaseEventView] = (),
    attempts: Sequence[AttemptView] = (),
) -> list[str]:
    """Return a line per transition, with the duration of the state before it, and a line per lease event."""
    numbers = {one.id: one.number for one in attempts}
    lines: list[tuple[datetime, str]] = []
    before: datetime | None = None
    attempt_before: str | None = None
    for one in transitions:
        lasted = "" if before is None else f"after {duration((one.at - before).total_seconds())}"
        number = numbers.get(one.attempt_id or "")
        begins = f" (attempt {number})" if number is not None and one.attempt_id != attempt_before else ""
        why = " – ".join(part for part in (one.reason, one.message) if part)
        line = f"  {local_time(one.at)}  {one.target.value:<12} {lasted:<18} {one.actor.value} {one.actor_name}{begins}"
        lines.append((one.at, line.rstrip() + (f": {why}" if why else "")))
        before, attempt_before = one.at, one.attempt_id
    lines += [(one.at, f"  {local_time(one.at)}    {_lease_event(one)}") for one in lease_events]
    return [line for _, line in sorted(lines, key=lambda pair: pair[0])]


def _lease_event(one: LeaseEventView) -> str:
    silent = duration(one.silent_s)
    if one.kind is LeaseEventKind.SUSPECT:
        return f"lease suspect: no heartbeat for {silent}"
    return f"lease recovered: a heartbeat after {silent}"


def attempt(one: AttemptView) -> list[str]:
    """Return an attempt's lines."""
    lines = [
        f"Attempt {one.number}: {one.id}",
        f"  worker      {one.worker_name} ({one.worker_id}), devices {', '.join(one.devices)}",
        f"  claimed     {local_time(one.claimed_at)}",
        f"  window open {MISSING if one.started_at is None else local_time(one.started_at)}",
        f"  ended       {MISSING if one.ended_at is None else local_time(one.ended_at)} {one.outcome or ''}".rstrip(),
    ]
    if one.reason or one.message:
        lines.append(f"  why         {' – '.join(part for part in (one.reason, one.message) if part)}")
    return lines


def configuration(effective: EffectiveConfig) -> list[str]:
    """Return a line per parameter: the engine's readback and the requested value."""
    lines = [f"  as {effective.engine} reports it:"]
    for one in effective.parameters:
        asked = "not requested" if one.requested is None else f"requested {_value(one.requested)}"
        mark = "" if one.confirmed else "   <- NOT as requested"
        lines.append(f"  {one.name:<34} {_value(one.effective):<20} {asked}{mark}")
    return lines


def no_result(one: RunView, method: MethodVersion | None = None) -> list[str]:
    """Return the reason for a missing result by a method."""
    if method is not None and one.state is RunState.AGGREGATED:
        return [f"  none by method {method}; run `lemctl results {one.campaign_id} --method {method}`"]
    if one.state is RunState.COMPLETED:
        return [f"  not aggregated yet; run `lemctl results {one.campaign_id}`"]
    return [f"  none: the run is {one.state.value}"]


def result(one: RunResult) -> list[str]:
    """Return the lines of every figure with its method, bound and number of samples."""
    window, work = one.window, one.work
    lines = [
        f"  verdict     {one.verdict} (method {one.method})",
        *(f"  {'' if at else 'checks':11} {line}" for at, line in enumerate(energy_report.checks(one.checks))),
        f"  window      {duration(window.duration_s)}, {window.processes} process(es), {work.requests} requests "
        f"({work.failed_requests} failed), {work.prompt_tokens} prompt and {work.generated_tokens} generated tokens",
        *_metric_lines(one, "speed"),
    ]
    if work.cached_prompt_tokens:
        lines.append(f"  cached      {work.cached_prompt_tokens} of the prompt tokens came from a prefix cache")
    if one.speculation is not None:
        guessed = one.speculation
        lines.append(
            f"  speculation {guessed.accepted_tokens} of {guessed.drafted_tokens} drafted tokens were accepted"
        )
    explanation = energy_report.explanation(one.energy)
    lines += [
        "",
        "Energy",
        *_metric_lines(one, "efficiency"),
        *_metric_lines(one, "energy"),
        f"  peak power         {energy_report.figure(one.energy.peak_power_w)}",
        f"  whole window       {energy_report.energy(one.energy.total)}",
        f"  method             {explanation[0]}",
        *(f"                     {sentence}" for sentence in explanation[1:]),
        f"  included           {', '.join(energy_report.part_name(name) for name in one.energy.includes) or 'nothing'}",
        *energy_report.constant(one.energy),
        *energy_report.parts(one.energy),
        *energy_report.sums(one.energy),
        *energy_report.net_of_baseline(one.energy),
        *energy_report.phases(one.energy.phases),
        *energy_report.probe(one.energy.probe),
    ]
    lines += ["", "Steady state, while every engine was full", *_steady(one)]
    if one.footprint is not None:
        lines += ["", "Carbon and cost", *energy_report.footprint(one.footprint)]
    if one.quality is not None:
        lines += ["", "Quality", *energy_report.quality(one.quality)]
    lines += ["", "Compute", *energy_report.compute(one.compute)]
    if lines_of_devices := energy_report.telemetry(one.telemetry):
        lines += ["", "Devices and apparatus", *lines_of_devices]
    lines += ["", "Findings"]
    lines += [f"  {_SEVERITIES[found.severity]}: {found.message}" for found in one.findings] or ["  none"]
    return lines


def _steady(one: RunResult) -> list[str]:
    steady = one.steady
    if steady.energy.joules is None:
        return [f"  {MISSING} ({steady.energy.reason})"]
    sequences = f"{number(steady.mean_sequences.value)} of {steady.target_sequences} sequences on average"
    return [
        *_metric_lines(one, "steady"),
        f"  duration           {duration(steady.duration_s.value or 0)}, {sequences}",
        f"  energy             {energy_report.energy(steady.energy)}",
        f"  mean power         {energy_report.figure(steady.mean_power_w)}",
    ]


def _metric_lines(one: RunResult, section: str) -> list[str]:
    """Return a line per labelled metric of a section of the result."""
    lines = []
    for metric in METRICS:
        if metric.label is None or metric.name.partition(".")[0] != section:
            continue
        found = field_of(one, metric.distribution or metric.name)
        if isinstance(found, Distribution):
            text = energy_report.distribution(found)
        elif isinstance(found, Figure):
            energy = field_of(one, metric.per_energy) if metric.per_energy else None
            if isinstance(energy, EnergyFigure):
                text = energy_report.ratio(found, energy)
            else:
                text = energy_report.figure(found)
        else:
            text = quantity(metric.read(one).value, metric.unit)
        lines.append(f"  {metric.label:<18} {text}")
    return lines


def evidence(server: str, one: AttemptView) -> list[str]:
    """Return the address of the raw streams and the number of rows in each."""
    lines = [f"  {server}/api/v1/attempts/{one.id}/streams"]
    if one.manifest is None:
        return [*lines, "  the attempt has no manifest; the chunks that it sent are stored"]
    lines += [f"  {part.process}/{part.stream}: {part.rows} rows in {part.chunks} chunks" for part in one.manifest]
    return lines


def values(tree: Mapping[str, JsonValue]) -> list[str]:
    """Return a line per leaf of a tree: its dotted path and its value."""
    return [f"  {path:<34} {_value(value)}" for path, value in flattened(tree)]


def _value(value: JsonValue) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
