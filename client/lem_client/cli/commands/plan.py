"""`lemctl plan`: shows what a campaign file would queue."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import typer

from lem_client.cli.campaign_options import CampaignName, CampaignPath, Overrides, upload_prompts
from lem_client.cli.commands import Section, command
from lem_client.cli.exits import ExitCode, RefusedFile
from lem_client.cli.session import Session, print_error, session_of
from lem_client.errors import InvalidRequest, ServerUnreachable
from lem_client.files.campaign_file import CampaignFile, load_campaign_file
from lem_client.render.schedule import execution_summary, least_duration_text
from lem_client.render.terminal import clean, table
from lem_domain.config.expansion import Plan
from lem_domain.wire.campaigns import CampaignPlan, PlannedExperimentView, PlannedRunView

RUNS_SHOWN = 40
COMBINATIONS_SHOWN = 20
"""Of the merged ones, and of the refused ones."""


@command("plan", Section.MEASURE)
def plan(context: typer.Context, file: CampaignPath, name: CampaignName = None, set_: Overrides = None) -> None:
    """Show what would be queued: experiments, runs in order, duplicates, the least time. Queues nothing.

    Prompt files that the campaign names are uploaded, so that the server can check them. Exits with 2 if refused
    combinations stop the campaign.

    \b
    lemctl plan examples/quickstart.yaml
    lemctl plan campaign.yaml --set execution.order=grouped --set on_refused=skip
    """
    session = session_of(context)
    loaded = load_campaign_file(file, name=name, overrides=set_ or (), refused_too=True)
    is_stopped = loaded.plan.refused > 0 and loaded.spec.on_refused == "stop"
    made = _server_plan(session, loaded)
    if session.as_json:
        session.print_json(made)
    else:
        for line in _lines(made, loaded):
            session.print(clean(line))
        _show_runs(session, loaded.plan)
        for note in made.notes:
            session.print(f"note: {clean(note)}")
        if is_stopped:
            print_error(
                "refused combinations stop the campaign; correct them, or set on_refused: skip to run the others."
            )
    raise typer.Exit(ExitCode.USAGE if is_stopped else ExitCode.DONE)


def _server_plan(session: Session, loaded: CampaignFile) -> CampaignPlan:
    # The table shows the local expansion; 100,000 configurations would take a while to transfer.
    listed = None if session.as_json else 0
    try:
        upload_prompts(session, loaded)
        return session.client.plan(loaded.spec, listed=listed)
    except ServerUnreachable as error:
        note = f"Planned without a server ({error.url} does not answer): what no worker can run is not known."
        return _local_plan(loaded, listed, note)
    except InvalidRequest as error:
        raise RefusedFile(loaded.problems(error)) from error


def _lines(made: CampaignPlan, loaded: CampaignFile) -> Iterator[str]:
    yield (
        f"{made.name}: {made.experiment_count} experiments, {made.run_count} runs, at least {least_duration_text(made)}"
    )
    yield f"order: {execution_summary(made.execution)}"
    if made.duplicates:
        yield f"{made.duplicates} combinations are the same as an earlier one and are measured once:"
        yield from (f"  {one.display_name} is {one.same_as}" for one in made.merged[:COMBINATIONS_SHOWN])
        yield from _more(made.duplicates)
    if made.refused:
        yield f"{made.refused} combinations are refused:"
        refusals = (
            f"  {one.display_name}: {sentence}"
            for one, sentences in zip(made.refusals, loaded.refusals(made), strict=True)
            for sentence in sentences
        )
        yield from islice(refusals, COMBINATIONS_SHOWN)
        yield from _more(made.refused)


def _more(count: int) -> tuple[str, ...]:
    return (f"  … and {count - COMBINATIONS_SHOWN} more",) if count > COMBINATIONS_SHOWN else ()


def _local_plan(loaded: CampaignFile, listed: int | None, note: str) -> CampaignPlan:
    return CampaignPlan.without_lists(loaded.spec, loaded.plan, (note,)).model_copy(
        update={
            "experiments": tuple(map(PlannedExperimentView.of, loaded.plan.experiments[:listed])),
            "runs": tuple(map(PlannedRunView.of, loaded.plan.runs[:listed])),
        }
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
