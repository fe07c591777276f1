"""Which campaign or worker a person means: by id, or by name."""

from __future__ import annotations

import re

from lem_client.client import Client
from lem_domain.errors import LemError
from lem_domain.ids import IdKind

_ID = re.compile(r"^([a-z]{3})_[0-9a-f]{32}$")


def kind_of(text: str) -> IdKind | None:
    """What an identifier stands for; None where the text is none."""
    found = _ID.match(text)
    try:
        return IdKind(found[1]) if found else None
    except ValueError:
        return None


def campaign_id_of(client: Client, text: str) -> str:
    """The campaign with this id, that this run belongs to, or the newest one of this name.

    Raises:
        LemError: there is none.
    """
    kind = kind_of(text)
    if kind is IdKind.CAMPAIGN:
        return text
    if kind is IdKind.RUN:
        return client.run(text).campaign_id
    if kind is not None:
        raise LemError(f"{text} is no campaign; give the id or name of one (`lemctl list` shows them).")
    newest = next(client.campaigns(name=text), None)
    if newest is None:
        raise LemError(f"there is no campaign named {text!r}; `lemctl list` shows those that there are.")
    return newest.id


def worker_id_of(client: Client, text: str) -> str:
    """The worker with this id or name.

    Raises:
        LemError: there is none, or several have the name.
    """
    if kind_of(text) is IdKind.WORKER:
        return text
    named = [worker.id for worker in client.workers() if worker.name == text]
    if len(named) > 1:
        raise LemError(f"{len(named)} workers are named {text!r}; give the id of one (`lemctl workers` shows them).")
    if not named:
        raise LemError(f"there is no worker named {text!r}; `lemctl workers` shows those that there are.")
    return named[0]
