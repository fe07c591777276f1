"""The lease protocol against a pure model: any requests, in any order, from anybody, current or long gone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy.engine import URL

from factories.protocol_machine import explore
from lem_server.attempts import service as attempts
from lem_server.evidence import service as evidence
from lem_server.leases import fence

Break = Callable[[pytest.MonkeyPatch], None]


def test_whatever_is_asked_the_database_is_as_the_design_says(database_url: URL) -> None:
    explore(database_url, examples=25, steps=40)


@pytest.mark.slow
def test_whatever_is_asked_the_database_is_as_the_design_says_over_many_long_stories(database_url: URL) -> None:
    explore(database_url, examples=75, steps=80)


async def _nobody(*_: Any, **__: Any) -> list[Any]:
    return []


async def _anybody(*_: Any, **__: Any) -> bool:
    return False


BREAKS: dict[str, Break] = {
    "a new boot leaves the leases of the old one": lambda patch: patch.setattr(attempts, "end_older_boots", _nobody),
    "a worker that leaves keeps its leases": lambda patch: patch.setattr(attempts, "end_leaving_boot", _nobody),
    "anybody may write": lambda patch: patch.setattr(evidence, "require_lease", _anybody),
    "nothing expires": lambda patch: patch.setattr(fence, "expired_attempts", _nobody),
}


@pytest.mark.slow
@pytest.mark.parametrize("what", BREAKS)
def test_a_story_goes_wrong_when(database_url: URL, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    BREAKS[what](monkeypatch)
    with pytest.raises(AssertionError):
        explore(database_url, examples=400, steps=60)
