"""`lemctl export` and `import`: a campaign as one file, from one server to another; and its tables."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from lem_client.cli.commands import Section, command
from lem_client.cli.exits import UsageError
from lem_client.cli.method_option import MethodOption
from lem_client.cli.naming import campaign_id_of
from lem_client.cli.session import Session, print_note, session_of
from lem_client.render.terminal import clean
from lem_client.render.transfer import TransferProgress, in_bytes
from lem_domain.results.method import MethodVersion
from lem_domain.states import RunState
from lem_domain.tables import TableFormat, TableName

_TABLES = "|".join(TableName)
_FORMATS = "|".join(TableFormat)
_STANDARD_OUTPUT = Path("-")
_OPEN = (RunState.QUEUED, RunState.INITIALISED, RunState.RUNNING)


@command("export", Section.TRANSFER)
def export(
    context: typer.Context,
    campaign: Annotated[str, typer.Argument(metavar="ID", help="Id or name of a campaign.")],
    bundle: Annotated[
        Path | None, typer.Option("--bundle", metavar="FILE", help="The archive to write, for example study.lem.tar.")
    ] = None,
    table: Annotated[
        TableName | None, typer.Option("--table", metavar=_TABLES, help="Export this table instead of an archive.")
    ] = None,
    format_: Annotated[
        TableFormat | None,
        typer.Option("--format", metavar=_FORMATS, help="Format of the table [the suffix of FILE, else csv]."),
    ] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="Where the table goes; `-` is standard output.")
    ] = _STANDARD_OUTPUT,
    method: MethodOption = None,
) -> None:
    """Write a complete campaign to one archive, which `lemctl import` loads into another server; or one of its tables.

    An archive has plan, configurations, prompts, environments, transitions, logs, raw evidence byte for byte, results,
    and the SHA-256 of each file: `tar -xf` unpacks it, `sha256sum -c SHA256SUMS` checks it. The campaign must be at
    rest.

    A table has units in its columns' names, and ids, the experiment's name and the swept keys on every row. A table
    that can't be completed leaves no file and exits with 1; on standard output, discard what came before. Of a
    campaign that still runs it has the rows so far.

    \b
    lemctl export quickstart --bundle quickstart.lem.tar
    lemctl export quickstart --table runs > runs.csv
    lemctl export quickstart --table tokens -o tokens.parquet
    """
    if table is not None:
        if bundle is not None:
            raise UsageError("--bundle and --table are two exports; write one after the other.")
        _export_table(session_of(context), campaign, table, format_, output, method)
        return
    if bundle is None:
        raise UsageError("name what to export: `lemctl export ID --bundle FILE`, or `lemctl export ID --table TABLE`.")
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


def _export_table(
    session: Session,
    campaign: str,
    table: TableName,
    format_: TableFormat | None,
    output: Path,
    method: MethodVersion | None,
) -> None:
    form = format_ or _by_suffix(output)
    if output == _STANDARD_OUTPUT and not form.is_text and sys.stdout.isatty():
        raise UsageError(f"a terminal can't show {form.value}; name a file: -o {table.value}.{form.value}")
    campaign_id = campaign_id_of(session.client, campaign)
    open_runs = session.client.campaign(campaign_id).runs.in_states(*_OPEN)
    with _progress(session, "received") as progress:
        if output == _STANDARD_OUTPUT:
            for part in session.client.table(campaign_id, table, form=form, method=method):
                sys.stdout.buffer.write(part)
                progress.add(len(part))
            sys.stdout.buffer.flush()
        else:
            session.client.export_table(campaign_id, table, output, form=form, method=method, progress=progress.add)
    if open_runs:
        print_note(f"note: {open_runs} runs are still queued or live; the table has the rows so far.")
    if output == _STANDARD_OUTPUT:
        return
    size = output.stat().st_size
    if session.as_json:
        session.print_json(
            {
                "campaign_id": campaign_id,
                "table": table.value,
                "format": form.value,
                "file": str(output),
                "bytes": size,
                "open_runs": open_runs,
            }
        )
    else:
        session.print(f"{clean(str(output))} ({in_bytes(size)}): table {table.value} of {campaign_id}")


def _by_suffix(output: Path) -> TableFormat:
    suffix = output.suffix.removeprefix(".").lower()
    return TableFormat(suffix) if suffix in list(TableFormat) else TableFormat.CSV


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
