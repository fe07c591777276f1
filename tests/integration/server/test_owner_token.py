"""The owner's token of each data folder: one each, however often a folder is lost, and none takes another's away."""

from __future__ import annotations

import asyncio
import logging
import shutil
from pathlib import Path
from uuid import UUID

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from lem_domain.wire.access import DEFAULT_SCOPES, TokenCreate, TokenKind
from lem_server.access import queries, service
from lem_server.access.service import authenticate, ensure_owner_token
from lem_server.http.problems import ProblemError

pytestmark = pytest.mark.anyio


async def usable(engine: AsyncEngine) -> int:
    async with engine.connect() as connection:
        found = await connection.execute(text("SELECT count(*) FROM api_tokens WHERE revoked_at IS NULL"))
        count: int = found.scalar_one()
    return count


async def holder(engine: AsyncEngine, token: str) -> UUID | None:
    """The id of the token that this opens the server as."""
    try:
        principal = await authenticate(engine, token)
    except ProblemError:
        return None
    assert (principal.name, principal.kind) == ("owner", TokenKind.OWNER)
    assert principal.scopes == frozenset(DEFAULT_SCOPES[TokenKind.OWNER])
    return principal.token_id


async def made(engine: AsyncEngine, folder: Path) -> str:
    return (await ensure_owner_token(engine, folder)).read_text().strip()


async def test_a_folder_that_is_lost_again_and_again_never_has_more_than_one_token(
    engine: AsyncEngine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    lost = []
    for _ in range(3):
        lost.append(await made(engine, tmp_path / "data"))
        shutil.rmtree(tmp_path / "data")
    last = await made(engine, tmp_path / "data")
    assert await usable(engine) == 1
    assert [await holder(engine, token) for token in lost] == [None] * 3
    assert await holder(engine, last) is not None
    assert [record.getMessage().count("owner.token") for record in caplog.records] == [1] * 3


async def test_servers_with_their_own_folders_keep_their_tokens(
    engine: AsyncEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = await made(engine, tmp_path / "one"), await made(engine, tmp_path / "other")
    monkeypatch.setattr(service.socket, "gethostname", lambda: "elsewhere")
    shutil.move(tmp_path / "one", tmp_path / "kept")
    elsewhere = await made(engine, tmp_path / "one")
    assert len({await holder(engine, token) for token in (one, other, elsewhere)} - {None}) == 3
    shutil.rmtree(tmp_path / "one")
    await made(engine, tmp_path / "one")
    assert await holder(engine, elsewhere) is None
    assert None not in [await holder(engine, token) for token in (one, other)]
    assert await usable(engine) == 3


async def test_servers_that_share_a_folder_and_start_at_once_share_the_token(
    engine: AsyncEngine, tmp_path: Path
) -> None:
    tokens = await asyncio.gather(*(made(engine, tmp_path / "data") for _ in range(4)))
    assert len(set(tokens)) == 1
    assert await usable(engine) == 1


async def test_a_token_that_was_revoked_stays_so_when_the_folder_gets_another(
    engine: AsyncEngine, tmp_path: Path
) -> None:
    seen = []
    for _ in range(3):
        token = await made(engine, tmp_path)
        token_id = await holder(engine, token)
        assert token_id is not None
        seen.append(token_id)
        async with engine.begin() as connection:
            await queries.revoke(connection, token_id)
    assert len(set(seen)) == 3
    assert await usable(engine) == 0


async def test_a_file_that_cannot_be_written_leaves_no_token_behind(engine: AsyncEngine, tmp_path: Path) -> None:
    def full(path: Path, token: str) -> None:
        raise OSError(28, "No space left on device")

    with pytest.MonkeyPatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr(service, "_write_secret", full)
        await ensure_owner_token(engine, tmp_path)
    assert await usable(engine) == 0


async def test_a_token_that_someone_put_there_is_kept_until_it_expires(engine: AsyncEngine, tmp_path: Path) -> None:
    async with engine.begin() as connection:
        put = (await service.create(connection, TokenCreate(name="put", kind=TokenKind.USER, expires_in_days=1))).token
    (tmp_path / "owner.token").write_text(put)
    assert await made(engine, tmp_path) == put
    async with engine.begin() as connection:
        await connection.execute(text("UPDATE api_tokens SET expires_at = now() WHERE name = 'put'"))
    assert await holder(engine, await made(engine, tmp_path)) is not None
