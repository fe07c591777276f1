"""`lemctl workers`, `datasets`, `backends` and `presets`: what a campaign can use."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from lem_client.cli.commands import Section, command
from lem_client.cli.exits import UsageError
from lem_client.cli.session import Session, session_of
from lem_client.errors import ServerUnreachable
from lem_client.render.explain import local_time
from lem_client.render.terminal import table
from lem_domain.backends.registry import BackendName
from lem_domain.config.keys import Key
from lem_domain.config.presets import builtin_presets
from lem_domain.config.schema import experiment_keys
from lem_domain.wire.workers import WorkerState


@command("workers", Section.CATALOGUE)
def workers(context: typer.Context) -> None:
    """List workers: backend, state, devices and current runs.

    \b
    lemctl workers
    lemctl workers --json
    """
    session = session_of(context)
    found = tuple(session.client.workers())
    if session.as_json:
        session.print_json(found)
    elif not found:
        session.note("There are no workers; `lemctl up` or `lem-worker run --backend BACKEND` starts one.")
    else:
        rows = [
            (
                one.id,
                one.name,
                one.backend,
                one.state.value,
                ", ".join(device.name for device in one.devices),
                ", ".join(one.current_runs) or "none",
                local_time(one.last_seen_at),
            )
            for one in found
        ]
        session.print(table(("id", "name", "backend", "state", "devices", "current runs", "last seen"), rows))


@command("datasets", Section.CATALOGUE)
def datasets(context: typer.Context) -> None:
    """List prompt sets: the built-in ones (prompts.builtin: NAME) and uploaded ones (prompts.dataset: SHA-256).

    \b
    lemctl datasets
    """
    session = session_of(context)
    found = tuple(session.client.datasets())
    if session.as_json:
        session.print_json(found)
        return
    rows = [(one.name, "built-in" if one.builtin else "uploaded", str(one.prompts), one.sha256) for one in found]
    session.print(table(("name", "kind", "prompts", "sha256"), rows, right=("prompts",)))


@command("backends", Section.CATALOGUE)
def backends(
    context: typer.Context,
    backend: Annotated[
        BackendName | None, typer.Argument(metavar="NAME", help="List every key of this backend's section.")
    ] = None,
) -> None:
    """List backends with their online workers, or every key of one: type, default, unit, the engine's own name.

    \b
    lemctl backends
    lemctl backends pytorch
    """
    session = session_of(context)
    if backend is not None:
        _show_keys(session, [key for key in experiment_keys() if key.section == backend])
        return
    online = _online(session)
    rows = []
    for one in BackendName:
        own = [key for key in experiment_keys() if key.section == one]
        number = None if online is None else online.get(one.value, 0)
        rows.append((one.value, sum(not key.group for key in own), number, own[0].description))
    if session.as_json:
        names = ("name", "keys", "workers", "description")
        session.print_json([dict(zip(names, row, strict=True)) for row in rows])
        return
    shown = [
        (name, str(keys), "not known" if number is None else str(number), description)
        for name, keys, number, description in rows
    ]
    headings = ("backend", "keys", "workers online", "description")
    session.print(table(headings, shown, right=("keys", "workers online")))


@command("presets", Section.CATALOGUE)
def presets(
    context: typer.Context,
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Show the values of this preset.")] = None,
) -> None:
    """List the built-in presets, or the values of one. In a file: `presets: [quick, throughput]`. Needs no server.

    \b
    lemctl presets
    lemctl presets quick
    """
    session = session_of(context)
    known = builtin_presets()
    if name is not None and name not in known:
        raise UsageError(f"there is no preset {name!r}; choose one of {', '.join(known)}.")
    chosen = [one for one in known.values() if name in (None, one.name)]
    if session.as_json:
        session.print_json([one._asdict() for one in chosen])
    elif name is not None:
        from lem_client.files.yaml_dialect import as_block  # noqa: PLC0415 - not needed for the list

        session.print(f"# {chosen[0].description}")
        session.print(as_block(dict(chosen[0].values)))
    else:
        session.print(table(("preset", "purpose"), [(one.name, one.description) for one in chosen]))


def _online(session: Session) -> dict[str, int] | None:
    """Count online workers per backend; None if no server answers."""
    try:
        found = [worker.backend for worker in session.client.workers() if worker.state is WorkerState.ONLINE]
    except ServerUnreachable:
        return None
    return {backend: found.count(backend) for backend in found}


def _show_keys(session: Session, keys: list[Key]) -> None:
    if session.as_json:
        session.print_json([key._asdict() for key in keys])
        return
    rows = [
        (
            key.path,
            key.type,
            "" if key.default is None else json.dumps(key.default),
            key.unit or "",
            key.constraint or "",
            key.engine_parameter or "",
            key.description,
        )
        for key in keys
        if not key.group
    ]
    session.print(table(("key", "type", "default", "unit", "constraint", "engine", "description"), rows))
