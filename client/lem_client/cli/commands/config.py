"""`lemctl config`: checks a campaign file, shows every value and its origin, and prints the schema for editors."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer
from pydantic.types import JsonValue

from lem_client.cli.campaign_options import CampaignPath, Overrides
from lem_client.cli.commands import Section, command
from lem_client.cli.exits import ExitCode, sentences_of
from lem_client.cli.session import Session, print_error, session_of
from lem_client.errors import FileError
from lem_client.files.campaign_file import CampaignFile, load_campaign_file
from lem_client.render.terminal import clean
from lem_domain.config.expansion import PlannedExperiment
from lem_domain.config.provenance import ResolvedValue, Source, resolved_values

if TYPE_CHECKING:
    from rich.text import Text

_COLOURS: Final[Mapping[Source, str]] = {
    Source.COMMAND_LINE: "magenta",
    Source.SWEEP: "cyan",
    Source.FILE: "green",
    Source.PRESET: "yellow",
    Source.REQUEST: "blue",
    Source.DEFAULT: "bright_black",
}


@command("config show", Section.CONFIGURE)
def show(
    context: typer.Context,
    file: CampaignPath,
    set_: Overrides = None,
    provenance: Annotated[
        bool, typer.Option("--provenance", help="Show where each value comes from, in a colour per source.")
    ] = False,
) -> None:
    """Check a file and show every experiment in full, defaults included. Needs no server.

    \b
    lemctl config show examples/quickstart.yaml
    lemctl config show campaign.yaml --provenance --set pytorch.batch_size=4
    """
    session = session_of(context)
    loaded = load_campaign_file(file, overrides=set_ or ())
    head: dict[str, JsonValue] = {"name": loaded.spec.name, "execution": loaded.spec.execution.model_dump(mode="json")}
    if session.as_json:
        listed = [_as_json(one, loaded, provenance) for one in loaded.plan.experiments]
        session.print_json({**head, "experiments": listed})
        return
    if provenance:
        _show_provenance(session, loaded)
        return
    from lem_client.files.yaml_dialect import as_block  # noqa: PLC0415 - not needed for --json

    parts: list[JsonValue] = [head]
    parts += [
        {one.display_name: one.config.model_dump(mode="json", exclude_none=True), "config_hash": one.config_hash}
        for one in loaded.plan.experiments
    ]
    for part in parts:
        session.print(clean(as_block(part)))
        session.print("")


@command("config validate", Section.CONFIGURE)
def validate(
    context: typer.Context,
    files: Annotated[list[Path], typer.Argument(metavar="FILE", help="Campaign files.")],
    set_: Overrides = None,
) -> None:
    """Check files without a server and report every problem with its file and line. Exits with 2 if there is any.

    \b
    lemctl config validate examples/*.yaml
    """
    session = session_of(context)
    code = ExitCode.DONE
    answers: list[JsonValue] = []
    for file in files:
        try:
            loaded = load_campaign_file(file, overrides=set_ or ())
        except FileError as error:
            code = ExitCode.USAGE
            answers.append({"file": str(file), "problems": list(error.problems)})
            if not session.as_json:
                for sentence in sentences_of(error):
                    print_error(sentence)
            continue
        experiments, runs = len(loaded.plan.experiments), len(loaded.plan.runs)
        answers.append({"file": str(file), "problems": [], "experiments": experiments, "runs": runs})
        if not session.as_json:
            session.note(clean(f"{file}: {experiments} experiments, {runs} runs"))
    if session.as_json:
        session.print_json(answers)
    raise typer.Exit(code)


@command("config schema", Section.CONFIGURE)
def schema(context: typer.Context) -> None:
    """Print the JSON Schema of a campaign file, which lets an editor complete and check it.

    \b
    lemctl config schema > campaign.schema.json
    then, as a file's first line:  # yaml-language-server: $schema=campaign.schema.json
    """
    from lem_domain.config.schema import campaign_file_schema  # noqa: PLC0415 - built from every model

    session = session_of(context)
    made = campaign_file_schema()
    if session.as_json:
        session.print_json(made)
    else:
        session.print(json.dumps(made, indent=1, ensure_ascii=False))


def values_of(one: PlannedExperiment, loaded: CampaignFile) -> Iterator[ResolvedValue]:
    """Yield every value of an experiment with its origin."""
    return resolved_values(one.config, varied=one.varied, origins=loaded.spec.provenance)


def provenance_line(value: ResolvedValue) -> Text:
    """Lay out one value and its origin, in the colour of its source."""
    from rich.text import Text  # noqa: PLC0415

    shown = "" if value.value is None else json.dumps(value.value, ensure_ascii=False)
    source = value.source.value.replace("_", " ")
    origin = f"{source}: {value.detail}" if value.detail else source
    return Text(clean(f"{value.path:36} {shown:24} {origin}"), style=_COLOURS[value.source])


def _show_provenance(session: Session, loaded: CampaignFile) -> None:
    for one in loaded.plan.experiments:
        session.print(clean(f"{one.display_name}  {one.config_hash}"))
        for value in values_of(one, loaded):
            session.print(provenance_line(value))
        session.print("")


def _as_json(one: PlannedExperiment, loaded: CampaignFile, provenance: bool) -> dict[str, object]:
    made: dict[str, object] = {
        "display_name": one.display_name,
        "config_hash": one.config_hash,
        "config": one.config,
    }
    if provenance:
        made["provenance"] = {
            value.path: {"value": value.value, "source": value.source, "detail": value.detail}
            for value in values_of(one, loaded)
        }
    return made
