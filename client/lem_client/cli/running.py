"""`lemctl run`, `submit`, `watch` and `plan`: from a file to measured runs."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Annotated
from uuid import uuid4

import typer

from lem_client.cli.exits import Exit, ProblemsInFile
from lem_client.cli.naming import campaign_id_of
from lem_client.cli.session import Session, clean, session_of, table
from lem_client.cli.watching import taken_up_again, tell, watch_to_the_end
from lem_client.errors import InvalidRequest, ServerUnreachable
from lem_client.files.campaign_file import CampaignFile, load_campaign_file
from lem_client.render.schedule import execution_words, least_words
from lem_domain.config.duration import least_duration
from lem_domain.config.expansion import Plan
from lem_domain.wire.campaigns import (
    CampaignPlan,
    CampaignView,
    MergedView,
    PlannedExperimentView,
    PlannedRunView,
    RefusedView,
)
from lem_domain.wire.workers import WorkerState

CampaignPath = Annotated[Path, typer.Argument(metavar="FILE", help="A campaign file, YAML or TOML.")]
Name = Annotated[str | None, typer.Option(help="Name of the campaign, instead of the file's own.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="PATH=VALUE", help="Set a value, before the file's own; may be given several times."),
]
RUNS_SHOWN = 40
TOLD = 20
"""Merged and refused combinations that are told one by one."""


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    app.command("run")(run)
    app.command("plan")(plan)
    app.command("submit")(submit)
    app.command("watch")(watch)


def run(context: typer.Context, file: CampaignPath, name: Name = None, set_: Overrides = None) -> None:
    """Submit a campaign, watch it, aggregate its runs and show the result table.

    Exits with 1 if any run has no result. Ctrl-C leaves the campaign running.

    \b
    lemctl run examples/quickstart.yaml
    lemctl run examples/quickstart.yaml --set execution.cycles=5 --set pytorch.batch_size=4
    lemctl run campaign.yaml --json > events.jsonl
    """
    session = session_of(context)
    campaign = _submitted(session, load_campaign_file(file, name=name, overrides=set_ or ()))
    raise typer.Exit(watch_to_the_end(session, campaign.id))


def submit(context: typer.Context, file: CampaignPath, name: Name = None, set_: Overrides = None) -> None:
    """Queue a campaign and come back at once; prints its id.

    \b
    lemctl submit campaign.yaml
    lemctl watch $(lemctl submit campaign.yaml --quiet)
    """
    session = session_of(context)
    campaign = _submitted(session, load_campaign_file(file, name=name, overrides=set_ or ()))
    if session.as_json:
        session.print_json(campaign)
    else:
        session.print(campaign.id)
        session.say(f"{campaign.runs.total} runs are queued; watch them with `lemctl watch {campaign.id}`")


def watch(
    context: typer.Context, campaign: Annotated[str, typer.Argument(metavar="ID", help="Id or name of a campaign.")]
) -> None:
    """Watch a campaign until nothing more happens, then show its result table. It can be left and taken up again.

    \b
    lemctl watch cmp_0199…
    lemctl watch quickstart        the newest campaign of this name
    """
    session = session_of(context)
    raise typer.Exit(watch_to_the_end(session, campaign_id_of(session.client, campaign)))


def plan(context: typer.Context, file: CampaignPath, name: Name = None, set_: Overrides = None) -> None:
    """Show what would be queued: experiments, runs in order, duplicates, the least time. Queues nothing.

    Prompt files that the campaign names are uploaded, so that they can be checked.

    \b
    lemctl plan examples/quickstart.yaml
    lemctl plan campaign.yaml --set execution.order=grouped --set on_refused=skip
    """
    session = session_of(context)
    loaded = load_campaign_file(file, name=name, overrides=set_ or (), refused_too=True)
    stopped = loaded.plan.refused > 0 and loaded.spec.on_refused == "stop"
    # What is shown of them is known here, and 100,000 configurations would take a while to come.
    listed = None if session.as_json else 0
    try:
        _upload(session, loaded)
        made = session.client.plan(loaded.spec, listed=listed)
    except ServerUnreachable as error:
        note = f"Planned without a server ({error.url} does not answer): what no worker can run is not known."
        made = _local_plan(loaded, listed, note)
    except InvalidRequest as error:
        raise ProblemsInFile(loaded.problems(error)) from error
    if session.as_json:
        session.print_json(made)
        raise typer.Exit(Exit.USAGE if stopped else Exit.DONE)
    session.print(
        f"{clean(made.name)}: {made.experiment_count} experiments, {made.run_count} runs, at least {least_words(made)}"
    )
    session.print(f"order: {execution_words(made.execution)}")
    if made.duplicates:
        session.print(f"{made.duplicates} combinations are the same as an earlier one and are measured once:")
        told = (f"  {one.display_name} is {one.same_as}" for one in made.merged[:TOLD])
        session.print(*map(clean, told), *_more(made.duplicates - TOLD))
    if made.refused:
        session.print(f"{made.refused} combinations are refused:")
        told = (
            f"  {one.display_name}: {sentence}"
            for one, sentences in zip(made.refusals, loaded.refusals(made), strict=True)
            for sentence in sentences
        )
        session.print(*map(clean, islice(told, TOLD)), *_more(made.refused - TOLD))
    _show_runs(session, loaded.plan)
    for note in made.notes:
        session.print(f"note: {clean(note)}")
    if stopped:
        tell("error: refused combinations stop the campaign; correct them, or set on_refused: skip to run the others.")
        raise typer.Exit(Exit.USAGE)


def _more(count: int) -> tuple[str, ...]:
    return (f"  … and {count} more",) if count > 0 else ()


def _submitted(session: Session, loaded: CampaignFile) -> CampaignView:
    key = uuid4().hex
    try:
        _upload(session, loaded)
        campaign = session.client.submit(loaded.spec, idempotency_key=key)
    except InvalidRequest as error:
        raise ProblemsInFile(loaded.problems(error)) from error
    with taken_up_again(campaign.id):
        _note_missing_workers(session, loaded)
    return campaign


def _upload(session: Session, loaded: CampaignFile) -> None:
    for prompts in loaded.prompt_sets:
        session.client.upload_dataset(prompts.name, prompts.prompts)


def _note_missing_workers(session: Session, loaded: CampaignFile) -> None:
    """Say why nothing will happen before somebody wonders."""
    online = {worker.backend for worker in session.client.workers() if worker.state is WorkerState.ONLINE}
    wanted = {experiment.needs.backend.value for experiment in loaded.plan.experiments}
    for backend in sorted(wanted - online):
        tell(
            f"note: no {backend} worker is online; the runs wait until one is started "
            f"(lemctl up --backend {backend}, or lem-worker run --backend {backend})."
        )


def _local_plan(loaded: CampaignFile, listed: int | None, note: str) -> CampaignPlan:
    windows = [one.needs.window_s for one in loaded.plan.experiments]
    least = least_duration(loaded.plan.runs, windows, loaded.spec.execution.gaps)
    return CampaignPlan(
        name=loaded.spec.name,
        experiment_count=len(loaded.plan.experiments),
        run_count=len(loaded.plan.runs),
        experiments=tuple(
            PlannedExperimentView(
                display_name=one.display_name, varied=one.varied, config=one.config, config_hash=one.config_hash
            )
            for one in loaded.plan.experiments[:listed]
        ),
        runs=tuple(
            PlannedRunView(experiment=one.experiment, cycle=one.cycle, position=one.position)
            for one in loaded.plan.runs[:listed]
        ),
        duplicates=loaded.plan.duplicates,
        merged=tuple(MergedView(**one._asdict()) for one in loaded.plan.merged),
        refused=loaded.plan.refused,
        refusals=tuple(RefusedView(**one._asdict()) for one in loaded.plan.refusals),
        execution=loaded.spec.execution,
        minimum_duration_s=least.total_s,
        minimum_gap_s=least.gaps_s,
        notes=(note,),
    )


def _show_runs(session: Session, made: Plan) -> None:
    rows = [
        (
            str(one.position + 1),
            made.experiments[one.experiment].display_name,
            str(one.cycle),
            made.experiments[one.experiment].needs.backend.value,
            made.experiments[one.experiment].config_hash[:12],
        )
        for one in made.runs[:RUNS_SHOWN]
    ]
    session.print(table(("run", "experiment", "cycle", "backend", "configuration"), rows, right=("run", "cycle")))
    if len(made.runs) > RUNS_SHOWN:
        session.print(f"… and {len(made.runs) - RUNS_SHOWN} more; --json shows them all.")
