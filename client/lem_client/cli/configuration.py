"""`lemctl config show`: the whole configuration of every experiment that a file makes, without a server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from pydantic.types import JsonValue

from lem_client.cli.session import clean, session_of
from lem_client.files import load_campaign_file


def add_to(app: typer.Typer) -> None:
    """Register the group."""
    group = typer.Typer(help="Look at configurations.", no_args_is_help=True, rich_markup_mode=None)
    group.command("show")(show)
    # One command alone would swallow the group's name.
    group.callback()(_group)
    app.add_typer(group, name="config")


def _group() -> None:
    """Look at configurations."""


def show(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A campaign file, YAML or TOML.")],
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="PATH=VALUE", help="Set a value, before the file's own; may be given several times."
        ),
    ] = None,
) -> None:
    """Check a file and show every experiment in full, defaults included. Needs no server.

    \b
    lemctl config show examples/quickstart.yaml
    lemctl config show campaign.yaml --set pytorch.batch_size=4 --json
    """
    session = session_of(context)
    loaded = load_campaign_file(file, overrides=set_ or ())
    experiments: list[dict[str, JsonValue]] = [
        {
            "display_name": one.display_name,
            "config_hash": one.config_hash,
            "config": one.config.model_dump(mode="json", exclude_none=not session.as_json),
        }
        for one in loaded.plan.experiments
    ]
    execution = loaded.spec.execution.model_dump(mode="json")
    if session.as_json:
        listed: list[JsonValue] = list(experiments)
        session.print_json({"name": loaded.spec.name, "execution": execution, "experiments": listed})
        return
    import yaml  # noqa: PLC0415 - not needed for --json

    parts: list[dict[str, JsonValue]] = [{"name": loaded.spec.name, "execution": execution}]
    parts += [{f"{one['display_name']}": one["config"], "config_hash": one["config_hash"]} for one in experiments]
    for part in parts:
        session.print(clean(yaml.safe_dump(part, sort_keys=False, allow_unicode=True).rstrip()))
        session.print("")
