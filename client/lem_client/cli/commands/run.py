"""`lemctl submit`, `run` and `watch`: from a campaign file to results."""

from __future__ import annotations

from typing import Annotated
from uuid import uuid4

import typer

from lem_client.cli.campaign_options import CampaignName, CampaignPath, Overrides, upload_prompts
from lem_client.cli.commands import Section, command
from lem_client.cli.exits import RefusedFile
from lem_client.cli.following import follow_to_the_end, note_on_interrupt
from lem_client.cli.naming import campaign_id_of
from lem_client.cli.session import Session, print_note, session_of
from lem_client.errors import InvalidRequest
from lem_client.files.campaign_file import CampaignFile, load_campaign_file
from lem_domain.wire.campaigns import CampaignView
from lem_domain.wire.workers import WorkerState


@command("run", Section.MEASURE)
def run(context: typer.Context, file: CampaignPath, name: CampaignName = None, set_: Overrides = None) -> None:
    """Submit a campaign, watch it, aggregate its runs and show the result table.

    Exits with 1 if any run has no result. Ctrl-C leaves the campaign running.

    \b
    lemctl run examples/quickstart.yaml
    lemctl run examples/quickstart.yaml --set execution.cycles=5 --set pytorch.batch_size=4
    lemctl run campaign.yaml --json > events.jsonl
    """
    session = session_of(context)
    campaign = _submit(session, load_campaign_file(file, name=name, overrides=set_ or ()))
    raise typer.Exit(follow_to_the_end(session, campaign.id))


@command("submit", Section.MEASURE)
def submit(context: typer.Context, file: CampaignPath, name: CampaignName = None, set_: Overrides = None) -> None:
    """Queue a campaign, print its id and return.

    \b
    lemctl submit campaign.yaml
    lemctl watch $(lemctl submit campaign.yaml --quiet)
    """
    session = session_of(context)
    campaign = _submit(session, load_campaign_file(file, name=name, overrides=set_ or ()))
    if session.as_json:
        session.print_json(campaign)
    else:
        session.print(campaign.id)
        session.note(f"{campaign.runs.total} runs are queued; watch them with `lemctl watch {campaign.id}`")


@command("watch", Section.MEASURE)
def watch(
    context: typer.Context, campaign: Annotated[str, typer.Argument(metavar="ID", help="Id or name of a campaign.")]
) -> None:
    """Watch a campaign until it settles, then show its result table. Ctrl-C leaves it running; watch it again any time.

    \b
    lemctl watch cmp_0199…
    lemctl watch quickstart        the newest campaign of this name
    """
    session = session_of(context)
    raise typer.Exit(follow_to_the_end(session, campaign_id_of(session.client, campaign)))


def _submit(session: Session, loaded: CampaignFile) -> CampaignView:
    try:
        upload_prompts(session, loaded)
        campaign = session.client.submit(loaded.spec, idempotency_key=uuid4().hex)
    except InvalidRequest as error:
        raise RefusedFile(loaded.problems(error)) from error
    with note_on_interrupt(campaign.id):
        _note_missing_workers(session, loaded)
    return campaign


def _note_missing_workers(session: Session, loaded: CampaignFile) -> None:
    online = {worker.backend for worker in session.client.workers() if worker.state is WorkerState.ONLINE}
    needed = {experiment.needs.backend.value for experiment in loaded.plan.experiments}
    for backend in sorted(needed - online):
        print_note(
            f"note: no {backend} worker is online; the runs wait until one is started "
            f"(lemctl up --backend {backend}, or lem-worker run --backend {backend})."
        )
