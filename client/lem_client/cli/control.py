"""`lemctl pause`, `resume`, `place`, `retry`, `cancel` and `drain`: what people ask of campaigns, runs and workers."""

from __future__ import annotations

from typing import Annotated

import typer

from lem_client.cli.campaigns import give
from lem_client.cli.naming import campaign_id_of, kind_of, worker_id_of
from lem_client.cli.session import clean, session_of
from lem_client.render import explain
from lem_domain.config.execution import Placement
from lem_domain.ids import IdKind
from lem_domain.states import CampaignState, RunState
from lem_domain.wire.campaigns import CampaignView

_CAMPAIGN = typer.Argument(metavar="ID", help="Id or name of a campaign.")
_CAMPAIGN_OR_RUN = typer.Argument(metavar="ID", help="Id or name of a campaign, or id of a run.")


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    app.command("pause")(pause)
    app.command("resume")(resume)
    app.command("place")(place)
    app.command("retry")(retry)
    app.command("cancel")(cancel)
    app.command("drain")(drain)


def pause(
    context: typer.Context,
    what: Annotated[str, _CAMPAIGN],
    stop: Annotated[
        bool,
        typer.Option("--stop", help="Stop what is being measured too; it is queued again and costs no retry."),
    ] = False,
) -> None:
    """Pause a campaign: nothing more of it is claimed until `lemctl resume`. What is being measured finishes.

    \b
    lemctl pause nightly
    lemctl pause nightly --stop     free the devices within seconds
    """
    session = session_of(context)
    campaign = session.client.pause_campaign(
        campaign_id_of(session.client, what), live_runs="stop" if stop else "finish"
    )
    live = campaign.runs.in_states(RunState.INITIALISED, RunState.RUNNING)
    being = f"; {live} being measured {'are stopped' if stop else 'finish'}" if live else ""
    give(session, campaign, [_line(campaign) + being])


def resume(context: typer.Context, what: Annotated[str, _CAMPAIGN]) -> None:
    """Go on with a campaign: what waits is claimed again, and what failed or was interrupted is queued again.

    Each such run gets a new attempt with its own evidence; what is already measured stays as it is. A campaign whose
    configuration is to change is another campaign: submit it.

    \b
    lemctl resume nightly
    """
    session = session_of(context)
    campaign_id = campaign_id_of(session.client, what)
    session.client.resume_campaign(campaign_id)
    retried = session.client.retry_failed(campaign_id)
    campaign = session.client.campaign(campaign_id)
    give(session, campaign, [_line(campaign), _queued_again(len(retried))])


def place(
    context: typer.Context,
    what: Annotated[str, _CAMPAIGN],
    placement: Annotated[Placement | None, typer.Option(help="The rule from now on; without it, it stays.")] = None,
) -> None:
    """Let what a campaign has left run elsewhere: its next run chooses its devices anew, the others follow it.

    For a device that is gone for good. Results from several devices are not compared as if they were from one; where
    each run was measured stays on record.

    \b
    lemctl place nightly
    lemctl place nightly --placement same_model
    """
    session = session_of(context)
    campaign = session.client.place_campaign(campaign_id_of(session.client, what), placement=placement)
    give(session, campaign, [_line(campaign), f"placement: {campaign.placement}, from the next run on"])


def retry(context: typer.Context, what: Annotated[str, _CAMPAIGN_OR_RUN]) -> None:
    """Queue a failed run again, or every failed run of a campaign. A paused campaign stays paused.

    \b
    lemctl retry run_0199…
    lemctl retry nightly
    """
    session = session_of(context)
    if kind_of(what) is IdKind.RUN:
        run = session.client.retry_run(what)
        give(session, run, [f"{run.id} is {run.state.value}"])
        return
    campaign_id = campaign_id_of(session.client, what)
    retried = session.client.retry_failed(campaign_id)
    campaign = session.client.campaign(campaign_id)
    lines = [_line(campaign), _queued_again(len(retried))]
    if retried and campaign.state is CampaignState.PAUSED:
        lines.append("the campaign is paused; `lemctl resume` lets workers claim them")
    give(session, campaign, lines)


def cancel(context: typer.Context, what: Annotated[str, _CAMPAIGN_OR_RUN]) -> None:
    """Cancel a campaign or one run. What is queued ends at once; what is live is stopped by its worker within seconds.

    \b
    lemctl cancel quickstart
    lemctl cancel run_0199…
    """
    session = session_of(context)
    if kind_of(what) is IdKind.RUN:
        run = session.client.cancel_run(what)
        asked = (
            "; its worker was asked to stop it" if run.state is not RunState.CANCELLED and run.cancel_requested else ""
        )
        give(session, run, [f"{run.id} is {run.state.value}{asked}"])
        return
    campaign = session.client.cancel_campaign(campaign_id_of(session.client, what))
    give(session, campaign, [_line(campaign)])


def drain(
    context: typer.Context,
    what: Annotated[str, typer.Argument(metavar="WORKER", help="Id or name of a worker.")],
) -> None:
    """Let a worker finish what it holds and end. Started anew it claims again.

    \b
    lemctl drain bench-1
    """
    session = session_of(context)
    worker = session.client.drain_worker(worker_id_of(session.client, what))
    busy = f"; it finishes {', '.join(worker.current_runs)} first" if worker.current_runs else ""
    give(session, worker, [f"{clean(worker.name)} ({worker.id}) is {worker.state.value}{busy}"])


def _line(campaign: CampaignView) -> str:
    return f"{clean(campaign.name)} ({campaign.id}) is {campaign.state.value}: {explain.counts(campaign)}"


def _queued_again(count: int) -> str:
    return "nothing had failed" if not count else f"{count} {'run is' if count == 1 else 'runs are'} queued again"
