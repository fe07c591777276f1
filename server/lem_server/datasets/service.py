"""Lists, returns and stores sets of prompts."""

from __future__ import annotations

from collections.abc import Collection
from functools import cache

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from lem_domain.errors import ProblemCode
from lem_domain.prompt_sets import builtin_prompt_sets, load_builtin_prompts, prompts_digest
from lem_domain.wire.base import Page
from lem_domain.wire.datasets import DatasetContent, DatasetUpload, DatasetView
from lem_server.datasets import queries
from lem_server.http.problems import ProblemError


async def list_datasets(engine: AsyncEngine, *, cursor: str | None, limit: int) -> Page[DatasetView]:
    """Return a page of sets, the built-in ones before the uploaded."""
    async with engine.connect() as connection:
        page = await queries.list_datasets(connection, cursor=cursor, limit=limit)
    return page if cursor is not None else page.model_copy(update={"items": (*builtin_sets(), *page.items)})


async def get_dataset(engine: AsyncEngine, sha256: str) -> DatasetContent:
    """Return a set with its texts.

    Raises:
        ProblemError: `not_found`.
    """
    builtin = _builtin().get(sha256)
    if builtin is not None:
        return builtin
    async with engine.connect() as connection:
        found = await queries.get_dataset(connection, sha256)
    if found is None:
        raise ProblemError(
            ProblemCode.NOT_FOUND, f"the server holds no dataset {sha256}; GET /api/v1/datasets lists those it holds."
        )
    return found


async def store(connection: AsyncConnection, sha256: str, upload: DatasetUpload) -> tuple[DatasetView, bool]:
    """Store a set, and return whether it is new. An existing one stays unchanged, its name included.

    Raises:
        ProblemError: `digest_mismatch`, or `validation` when a prompt holds U+0000, which PostgreSQL can't store.
    """
    digest = prompts_digest(upload.prompts)
    if digest != sha256:
        raise ProblemError(
            ProblemCode.DIGEST_MISMATCH,
            f"the prompts have the digest {digest}, not the {sha256} of the address; send them to that address.",
        )
    builtin = _builtin().get(sha256)
    if builtin is not None:
        return _without_texts(builtin), False
    if any("\x00" in text for text in (upload.name, *upload.prompts)):
        raise ProblemError(
            ProblemCode.VALIDATION, "the name or a prompt holds the character U+0000, which can't be stored; remove it."
        )
    created = await queries.insert(connection, sha256=bytes.fromhex(sha256), name=upload.name, texts=upload.prompts)
    found = await queries.get_dataset(connection, sha256)
    if found is None:
        raise RuntimeError(f"dataset {sha256} vanished while it was stored")
    return _without_texts(found), created


async def existing(connection: AsyncConnection, wanted: Collection[str]) -> frozenset[str]:
    """Return the digests of sets that the server has, built in or uploaded."""
    if not wanted:
        return frozenset()
    uploaded = await queries.existing(connection, [bytes.fromhex(sha256) for sha256 in wanted])
    return frozenset(sha256 for sha256 in wanted if sha256 in _builtin() or bytes.fromhex(sha256) in uploaded)


def builtin_sets() -> tuple[DatasetView, ...]:
    """Return the built-in sets without their texts."""
    return tuple(_without_texts(one) for one in _builtin().values())


@cache
def _builtin() -> dict[str, DatasetContent]:
    """Return the built-in sets by digest."""
    found = {}
    for name in builtin_prompt_sets():
        texts = tuple(prompt.text for prompt in load_builtin_prompts(name))
        sha256 = prompts_digest(texts)
        found[sha256] = DatasetContent(name=name, sha256=sha256, builtin=True, prompts=len(texts), texts=texts)
    return found


def _without_texts(content: DatasetContent) -> DatasetView:
    return DatasetView.model_validate(content.model_dump(exclude={"texts"}))
