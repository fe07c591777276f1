"""`lemctl workers`, `datasets`, `backends` and `presets`: what there is to choose from."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from lem_client.cli.exits import UsageProblem
from lem_client.cli.session import Session, session_of, table
from lem_client.errors import ServerUnreachable
from lem_client.render.explain import moment
from lem_domain.backends.registry import BackendName
from lem_domain.config.keys import Key
from lem_domain.config.presets import builtin_presets
from lem_domain.config.schema import experiment_keys
from lem_domain.wire.workers import WorkerState


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    app.command("workers")(workers)
    app.command("datasets")(datasets)
    app.command("backends")(backends)
    app.command("presets")(presets)


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


def backends(
    context: typer.Context,
    backend: Annotated[BackendName | None, typer.Argument(help="One of them, with every key of its section.")] = None,
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
        workers = None if online is None else online.get(one.value, 0)
        rows.append((one.value, sum(not key.group for key in own), workers, own[0].description))
    if session.as_json:
        names = ("name", "keys", "workers", "description")
        session.print_json([dict(zip(names, row, strict=True)) for row in rows])
        return
    shown = [
        (name, str(keys), "not known" if workers is None else str(workers), what) for name, keys, workers, what in rows
    ]
    session.print(table(("backend", "keys", "workers online", "what"), shown, right=("keys", "workers online")))


def presets(
    context: typer.Context,
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="One of them, with its values.")] = None,
) -> None:
    """List the built-in presets, or the values of one. In a file: `presets: [quick, throughput]`. Needs no server.

    \b
    lemctl presets
    lemctl presets quick
    """
    session = session_of(context)
    known = builtin_presets()
    if name is not None and name not in known:
        raise UsageProblem(f"there is no preset {name!r}; choose one of {', '.join(known)}.")
    chosen = [one for one in known.values() if name in (None, one.name)]
    if session.as_json:
        session.print_json(
            [{"name": one.name, "description": one.description, "values": dict(one.values)} for one in chosen]
        )
    elif name is not None:
        from lem_client.files.yaml_dialect import as_block  # noqa: PLC0415 - not needed for the list

        session.print(f"# {chosen[0].description}")
        session.print(as_block(dict(chosen[0].values)))
    else:
        session.print(table(("preset", "for"), [(one.name, one.description) for one in chosen]))


def _online(session: Session) -> dict[str, int] | None:
    """Online workers per backend; None where no server answers."""
    try:
        found = [worker.backend for worker in session.client.workers() if worker.state is WorkerState.ONLINE]
    except ServerUnreachable:
        return None
    return {backend: found.count(backend) for backend in found}


def _show_keys(session: Session, keys: list[Key]) -> None:
    if session.as_json:
        session.print_json([{**key._asdict()} for key in keys])
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
    session.print(table(("key", "type", "default", "unit", "constraint", "engine", "what"), rows))
