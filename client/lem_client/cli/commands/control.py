"""`lemctl pause`, `resume`, `place`, `retry`, `cancel` and `drain`: change campaigns, runs and workers."""

from __future__ import annotations

from typing import Annotated

import typer

from lem_client.cli.commands import Section, command
from lem_client.cli.naming import campaign_id_of, kind_of, worker_id_of
from lem_client.cli.session import session_of
from lem_client.render import explain
from lem_domain.config.execution import Placement
from lem_domain.ids import IdKind
from lem_domain.states import CampaignState, RunState
from lem_domain.wire.campaigns import CampaignView

_CAMPAIGN = typer.Argument(metavar="ID", help="Id or name of a campaign.")
_CAMPAIGN_OR_RUN = typer.Argument(metavar="ID", help="Id or name of a campaign, or id of a run.")


@command("pause", Section.CONTROL)
def pause(
    context: typer.Context,
    target: Annotated[str, _CAMPAIGN],
    stop: Annotated[
        bool, typer.Option("--stop", help="Stop live runs too; they are queued again, which costs no retry.")
    ] = False,
) -> None:
    """Pause a campaign: its runs are not claimed until `lemctl resume`. Live runs finish.

    \b
    lemctl pause nightly
    lemctl pause nightly --stop     free the devices within seconds
    """
    session = session_of(context)
    campaign_id = campaign_id_of(session.client, target)
    campaign = session.client.pause_campaign(campaign_id, live_runs="stop" if stop else "finish")
    live = campaign.runs.in_states(RunState.INITIALISED, RunState.RUNNING)
    ending = f"; {live} being measured {'are stopped' if stop else 'finish'}" if live else ""
    session.show(campaign, [_state_line(campaign) + ending])


@command("resume", Section.CONTROL)
def resume(context: typer.Context, target: Annotated[str, _CAMPAIGN]) -> None:
    """Continue a campaign: queued runs are claimed again, failed and interrupted ones are queued again.

    Each such run gets a new attempt with its own evidence; existing results do not change. To change the configuration,
    submit another campaign.

    \b
    lemctl resume nightly
    """
    session = session_of(context)
    campaign_id = campaign_id_of(session.client, target)
    session.client.resume_campaign(campaign_id)
    retried = session.client.retry_failed(campaign_id)
    campaign = session.client.campaign(campaign_id)
    session.show(campaign, [_state_line(campaign), _queued_again(len(retried))])


@command("place", Section.CONTROL)
def place(
    context: typer.Context,
    target: Annotated[str, _CAMPAIGN],
    placement: Annotated[Placement | None, typer.Option(help="Rule from now on. Default: the present one.")] = None,
) -> None:
    """Move a campaign's remaining runs to other devices: the next run chooses them, the others follow it.

    For a device that is permanently unavailable. Results from several devices are not compared as if they came from
    one; the record of each run keeps its devices.

    \b
    lemctl place nightly
    lemctl place nightly --placement same_model
    """
    session = session_of(context)
    campaign = session.client.place_campaign(campaign_id_of(session.client, target), placement=placement)
    session.show(campaign, [_state_line(campaign), f"placement: {campaign.placement}, from the next run on"])


@command("retry", Section.CONTROL)
def retry(context: typer.Context, target: Annotated[str, _CAMPAIGN_OR_RUN]) -> None:
    """Queue a failed run again, or every failed run of a campaign. A paused campaign remains paused.

    \b
    lemctl retry run_0199…
    lemctl retry nightly
    """
    session = session_of(context)
    if kind_of(target) is IdKind.RUN:
        run = session.client.retry_run(target)
        session.show(run, [f"{run.id} is {run.state.value}"])
        return
    campaign_id = campaign_id_of(session.client, target)
    retried = session.client.retry_failed(campaign_id)
    campaign = session.client.campaign(campaign_id)
    lines = [_state_line(campaign), _queued_again(len(retried))]
    if retried and campaign.state is CampaignState.PAUSED:
        lines.append("the campaign is paused; `lemctl resume` lets workers claim them")
    session.show(campaign, lines)


@command("cancel", Section.CONTROL)
def cancel(context: typer.Context, target: Annotated[str, _CAMPAIGN_OR_RUN]) -> None:
    """Cancel a campaign or one run. Queued runs end at once; workers stop live runs within seconds.

    \b
    lemctl cancel quickstart
    lemctl cancel run_0199…
    """
    session = session_of(context)
    if kind_of(target) is IdKind.RUN:
        run = session.client.cancel_run(target)
        is_stopping = run.cancel_requested and run.state is not RunState.CANCELLED
        session.show(run, [f"{run.id} is {run.state.value}{'; its worker stops it' if is_stopping else ''}"])
        return
    campaign = session.client.cancel_campaign(campaign_id_of(session.client, target))
    session.show(campaign, [_state_line(campaign)])


@command("drain", Section.CONTROL)
def drain(
    context: typer.Context, target: Annotated[str, typer.Argument(metavar="WORKER", help="Id or name of a worker.")]
) -> None:
    """Let a worker finish its runs and end. After a restart it claims again.

    \b
    lemctl drain bench-1
    """
    session = session_of(context)
    worker = session.client.drain_worker(worker_id_of(session.client, target))
    remaining = f"; it finishes {', '.join(worker.current_runs)} first" if worker.current_runs else ""
    session.show(worker, [f"{worker.name} ({worker.id}) is {worker.state.value}{remaining}"])


def _state_line(campaign: CampaignView) -> str:
    return f"{campaign.name} ({campaign.id}) is {campaign.state.value}: {explain.run_counts(campaign)}"


def _queued_again(count: int) -> str:
    return "nothing had failed" if not count else f"{count} {'run is' if count == 1 else 'runs are'} queued again"
