"""`lemctl workers` and `datasets`: what the server knows of."""

from __future__ import annotations

import typer

from lem_client.cli.session import session_of, table
from lem_client.render.explain import moment


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    app.command("workers")(workers)
    app.command("datasets")(datasets)


def workers(context: typer.Context) -> None:
    """List workers: what they serve, whether they are heard of, what they are busy with.

    \b
    lemctl workers
    lemctl workers --json
    """
    session = session_of(context)
    found = tuple(session.client.workers())
    if session.as_json:
        session.print_json_list(found)
    elif not found:
        session.say("There are no workers; `lemctl up` or `lem-worker run --backend BACKEND` starts one.")
    else:
        rows = [
            (
                one.id,
                one.name,
                one.backend,
                one.state.value,
                ", ".join(device.name for device in one.devices),
                ", ".join(one.current_runs) or "nothing",
                moment(one.last_seen_at),
            )
            for one in found
        ]
        session.print(table(("id", "name", "backend", "state", "devices", "busy with", "last heard of"), rows))


def datasets(context: typer.Context) -> None:
    """List sets of prompts: the built-in ones (prompts.builtin: NAME) and uploaded ones (prompts.dataset: SHA-256).

    \b
    lemctl datasets
    """
    session = session_of(context)
    found = tuple(session.client.datasets())
    if session.as_json:
        session.print_json_list(found)
        return
    rows = [(one.name, "built-in" if one.builtin else "uploaded", str(one.prompts), one.sha256) for one in found]
    session.print(table(("name", "kind", "prompts", "sha256"), rows, right=("prompts",)))
