"""The proofs themselves: each notices when a part of the protocol that it is about is taken away."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from sqlalchemy import text
from sqlalchemy.engine import URL
from sqlalchemy.sql.elements import TextClause

from factories.protocol_races import PAIRS
from factories.protocol_stage import of_two, stage
from lem_server.attempts import queries as attempt_queries
from lem_server.leases import claim_queries, fence
from lem_server.runs import changes

pytestmark = pytest.mark.anyio

Break = Callable[[pytest.MonkeyPatch], None]


def without(module: object, name: str, *clauses: str) -> Break:
    """A statement without some of its clauses."""

    def take(patch: pytest.MonkeyPatch) -> None:
        statement: TextClause = getattr(module, name)
        sql = statement.text
        for clause in clauses:
            assert clause in sql
            sql = sql.replace(clause, "")
        changed = text(sql)
        patch.setattr(module, name, changed.bindparams(*(statement._bindparams[key] for key in changed._bindparams)))

    return take


async def _always(*_: object, **__: object) -> bool:
    return True


BREAKS: dict[str, tuple[str, Break]] = {
    "the fence looks and does not hold": ("end-chunk", without(fence, "_FENCE", "FOR KEY SHARE")),
    "a claim does not hold its campaign": (
        "pause-claim",
        without(claim_queries, "_NEXT_RUN", "FOR SHARE OF c SKIP LOCKED"),
    ),
    "a claim does not hold its run": (
        "claim-claim-of-one-run",
        without(claim_queries, "_NEXT_RUN", "FOR NO KEY UPDATE OF r SKIP LOCKED"),
    ),
    "an ending does not wait for the run": (
        "cancel-requeue-after-failure",
        without(attempt_queries, "_LOCK", "FOR NO KEY UPDATE OF r, a"),
    ),
    "expiry does not look again": (
        "expire-beat",
        lambda patch: patch.setattr(fence, "lock_if_expired", _always),
    ),
    "a worker ends what it has lost": ("expire-end", lambda patch: patch.setattr(fence, "lock_lease", _always)),
    "a cancel does not wait for the run": (
        "cancel-requeue-after-failure",
        lambda patch: patch.setattr(changes, "lock_run", _always),
    ),
}


@pytest.mark.parametrize("what", BREAKS)
async def test_a_race_is_lost_when(database_url: URL, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    story, take_away = BREAKS[what]
    async with stage(database_url) as where:
        orders = list(of_two(await where.steps(PAIRS[story])))
        take_away(monkeypatch)
        for turns in orders:
            if (await where.play(PAIRS[story], turns)).wrong:
                return
    pytest.fail("nothing went wrong in any order")
