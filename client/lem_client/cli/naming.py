"""Resolves what a person types, an id or a name, to an id."""

from __future__ import annotations

import re
from typing import NamedTuple

from lem_client.client import Client
from lem_domain.errors import LemError
from lem_domain.ids import IdKind

_ID = re.compile(r"^([a-z]{3})_[0-9a-f]{32}$")


def kind_of(text: str) -> IdKind | None:
    """Return the kind of an id; None if the text is not an id."""
    found = _ID.match(text)
    try:
        return IdKind(found[1]) if found else None
    except ValueError:
        return None


def campaign_id_of(client: Client, text: str) -> str:
    """Return the id of a campaign: as given, of the given run's campaign, or of the newest one with this name.

    Raises:
        LemError: there is none.
    """
    kind = kind_of(text)
    if kind is IdKind.CAMPAIGN:
        return text
    if kind is IdKind.RUN:
        return client.run(text).campaign_id
    if kind is not None:
        raise LemError(f"{text} is not a campaign; give the id or name of one (`lemctl list` shows them).")
    newest = next(client.campaigns(name=text), None)
    if newest is None:
        raise LemError(f"there is no campaign named {text!r}; `lemctl list` shows the campaigns.")
    return newest.id


class Comparable(NamedTuple):
    """A campaign, or one of its experiments."""

    id: str
    campaign_id: str


def comparable_of(client: Client, text: str) -> Comparable:
    """Return the campaign or experiment with this id, the newest campaign of this name, or `campaign:experiment`.

    Raises:
        LemError: there is none.
    """
    if kind_of(text) is IdKind.EXPERIMENT:
        return Comparable(text, client.experiment(text).campaign_id)
    campaign, colon, name = text.partition(":")
    if kind_of(text) is not None or not colon or next(client.campaigns(name=text), None) is not None:
        found = campaign_id_of(client, text)
        return Comparable(found, found)
    campaign_id = campaign_id_of(client, campaign)
    for experiment in client.experiments(campaign_id):
        if experiment.display_name == name:
            return Comparable(experiment.id, campaign_id)
    raise LemError(f"{campaign} has no experiment {name!r}; `lemctl show {campaign}` lists them.")


def worker_id_of(client: Client, text: str) -> str:
    """Return the id of the worker with this id or name.

    Raises:
        LemError: there is none, or several have the name.
    """
    if kind_of(text) is IdKind.WORKER:
        return text
    named = [worker.id for worker in client.workers() if worker.name == text]
    if len(named) > 1:
        raise LemError(f"{len(named)} workers are named {text!r}; give the id of one (`lemctl workers` shows them).")
    if not named:
        raise LemError(f"there is no worker named {text!r}; `lemctl workers` shows the workers.")
    return named[0]
