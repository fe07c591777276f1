"""`lemctl export` and `import`: a campaign as one file, from one server to another."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lem_client.cli.commands import Section, command
from lem_client.cli.exits import UsageError
from lem_client.cli.naming import campaign_id_of
from lem_client.cli.session import Session, session_of
from lem_client.render.terminal import clean
from lem_client.render.transfer import TransferProgress, in_bytes


@command("export", Section.TRANSFER)
def export(
    context: typer.Context,
    campaign: Annotated[str, typer.Argument(metavar="ID", help="Id or name of a campaign that is at rest.")],
    bundle: Annotated[
        Path | None, typer.Option("--bundle", metavar="FILE", help="The archive to write, for example study.lem.tar.")
    ] = None,
) -> None:
    """Write a complete campaign to one archive, which `lemctl import` loads into another server.

    Plan, configurations, prompts, environments, transitions, logs, raw evidence byte for byte, results, and the
    SHA-256 of each file: `tar -xf` unpacks it, `sha256sum -c SHA256SUMS` checks it.

    \b
    lemctl export quickstart --bundle quickstart.lem.tar
    """
    if bundle is None:
        raise UsageError("name the archive to write: `lemctl export ID --bundle FILE`.")
    session = session_of(context)
    campaign_id = campaign_id_of(session.client, campaign)
    with _progress(session, "received") as progress:
        written = session.client.export_bundle(campaign_id, bundle, progress=progress.add)
    size = bundle.stat().st_size
    header = written.header
    if session.as_json:
        session.print_json({"file": bundle, "bytes": size, "bundle_sha256": written.sha256, **dict(header)})
        return
    session.print(
        f"{clean(header.campaign_name)} ({header.campaign_id}): {header.experiments} experiments, {header.runs} runs, "
        f"{header.attempts} attempts, {header.chunks} chunks of evidence ({in_bytes(header.evidence_bytes)})"
    )
    session.print(f"{bundle} ({in_bytes(size)}), bundle sha256 {written.sha256}")
    session.note(f"Load it into another server: lemctl import {bundle} --server URL")


@command("import", Section.TRANSFER)
def import_(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A bundle that `lemctl export` wrote.")],
) -> None:
    """Load the campaign of a bundle under its own ids: all of it or nothing. The same bundle again changes nothing.

    An imported campaign is a record of measurements on another server: shown and aggregated like any other, never
    run. Needs a token with the scope `admin`.

    \b
    lemctl import quickstart.lem.tar
    """
    session = session_of(context)
    with _progress(session, "sent") as progress:
        imported = session.client.import_bundle(file, progress=progress.add)
    if session.as_json:
        session.print_json(imported)
        return
    campaign = imported.campaign
    outcome = "is imported" if imported.new else "was imported before; nothing has changed"
    session.print(
        f"{clean(campaign.name)} ({campaign.id}) {outcome}: {imported.experiments} experiments, {imported.runs} runs, "
        f"{imported.attempts} attempts, {imported.chunks} chunks of evidence ({in_bytes(imported.evidence_bytes)})"
    )
    session.note(f"More: lemctl results {campaign.id}, lemctl show {campaign.id}")


def _progress(session: Session, verb: str) -> TransferProgress:
    return TransferProgress(verb, quiet=session.quiet or session.as_json)
