"""`lemctl export` and `import`: a campaign as one file, from one server to another."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from pydantic.types import JsonValue

from lem_client.cli.exits import UsageProblem
from lem_client.cli.naming import campaign_id_of
from lem_client.cli.session import Session, clean, session_of
from lem_client.render.transfer import Transfer, in_bytes


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    app.command("export")(export)
    app.command("import")(import_)


def export(
    context: typer.Context,
    campaign: Annotated[str, typer.Argument(metavar="ID", help="Id or name of a campaign that is at rest.")],
    bundle: Annotated[
        Path | None, typer.Option("--bundle", metavar="FILE", help="The archive to write, for example study.lem.tar.")
    ] = None,
) -> None:
    """Write everything that there is of a campaign into one archive, which `lemctl import` loads into another server.

    Plan, configurations, prompts, environments, transitions, logs, raw evidence byte for byte, results, and the
    SHA-256 of each file: `tar -xf` unpacks it, `sha256sum -c SHA256SUMS` checks it.

    \b
    lemctl export quickstart --bundle quickstart.lem.tar
    """
    if bundle is None:
        raise UsageProblem("say where to: `lemctl export ID --bundle FILE`.")
    session = session_of(context)
    campaign_id = campaign_id_of(session.client, campaign)
    with _transfer(session, "received") as transfer:
        found = session.client.export_bundle(campaign_id, bundle, progress=transfer.add)
    size = bundle.stat().st_size
    if session.as_json:
        values: dict[str, JsonValue] = {
            "file": str(bundle),
            "bytes": size,
            "bundle_sha256": found.sha256,
            **found.header.model_dump(mode="json"),
        }
        session.print_json(values)
        return
    one = found.header
    session.print(
        f"{clean(one.campaign_name)} ({one.campaign_id}): {one.experiments} experiments, {one.runs} runs, "
        f"{one.attempts} attempts, {one.chunks} chunks of evidence ({in_bytes(one.evidence_bytes)})"
    )
    session.print(f"{bundle} ({in_bytes(size)}), bundle sha256 {found.sha256}")
    session.say(f"Load it elsewhere: lemctl import {bundle} --server URL")


def import_(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A bundle that `lemctl export` wrote.")],
) -> None:
    """Load a campaign from a bundle: under its own ids, all of it or nothing. The same bundle again changes nothing.

    It is a record of what was measured elsewhere: shown, compared and aggregated like any other, never run. Needs a
    token with the scope `admin`.

    \b
    lemctl import quickstart.lem.tar
    """
    session = session_of(context)
    with _transfer(session, "sent") as transfer:
        found = session.client.import_bundle(file, progress=transfer.add)
    if session.as_json:
        session.print_json(found)
        return
    one = found.campaign
    what = "is imported" if found.new else "was imported before; nothing has changed"
    session.print(
        f"{clean(one.name)} ({one.id}) {what}: {found.experiments} experiments, {found.runs} runs, "
        f"{found.attempts} attempts, {found.chunks} chunks of evidence ({in_bytes(found.evidence_bytes)})"
    )
    session.say(f"More: lemctl results {one.id}, lemctl show {one.id}")


def _transfer(session: Session, verb: str) -> Transfer:
    return Transfer(verb, quiet=session.quiet or session.as_json)
