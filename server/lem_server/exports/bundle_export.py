"""Writes a campaign as a bundle, page by page, in memory that does not grow with the campaign."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import AsyncIterator, Iterable
from importlib.metadata import version
from typing import NamedTuple, TypeAlias
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from lem_domain.bundle import (
    ARCHIVE_END,
    CAMPAIGN,
    FORMAT,
    FORMAT_VERSION,
    HEADER,
    SUMS,
    BundleHeader,
    member_head,
    member_tail,
    sums_line,
)
from lem_domain.errors import LemError, ProblemCode
from lem_domain.ids import IdKind, format_id
from lem_domain.prompt_sets import DEFAULT_PROMPT_SET
from lem_domain.results.method import DEFAULT_METHOD
from lem_server.datasets import service as datasets
from lem_server.evidence import reading
from lem_server.evidence import service as evidence
from lem_server.evidence.validation import ChunkKey
from lem_server.exports import export_queries as queries
from lem_server.exports.bundle_rows import (
    BundledExperiment,
    BundledLeaseEvent,
    BundledLog,
    BundledProcessResult,
    BundledRow,
    BundledRun,
)
from lem_server.exports.export_queries import ExportedRow
from lem_server.http.problems import ProblemError, required

_BLOCK = 2**18
"""Bytes that are sent together: the members of short runs are small, and one packet each would be slow."""
_SUMS_IN_MEMORY = 2**20
_PAGE_BYTES = 2**21
_NO_LIMIT = 2**31

_Members: TypeAlias = AsyncIterator[tuple[str, bytes]]
"""Names and contents."""


class CampaignChanged(LemError):
    """The campaign changed while it was exported; the archive is incomplete on purpose."""


class PreparedExport(NamedTuple):
    """The header of a bundle, and the size of the campaign when it was counted."""

    campaign_id: UUID
    header: BundleHeader
    size: queries.CampaignSize


async def prepare(engine: AsyncEngine, campaign_id: UUID) -> PreparedExport:
    """Count what the bundle will hold, before anything is sent.

    Raises:
        ProblemError: `not_found`, or `conflict` while runs are queued or live.
    """
    async with engine.connect() as connection:
        size = required(await queries.campaign_size(connection, campaign_id), IdKind.CAMPAIGN, campaign_id)
    if size.open_runs:
        raise ProblemError(
            ProblemCode.CONFLICT,
            f"{size.open_runs} runs of the campaign are still queued or live; wait for them or cancel them, "
            "then export the campaign.",
        )
    header = BundleHeader(
        format=FORMAT,
        version=FORMAT_VERSION,
        lem_version=version("llm-energy-measurement"),
        method=DEFAULT_METHOD,
        campaign_id=format_id(IdKind.CAMPAIGN, campaign_id),
        campaign_name=size.name,
        **size._asdict(),  # its numbers; the header ignores the rest
    )
    return PreparedExport(campaign_id, header, size)


async def blocks(engine: AsyncEngine, prepared: PreparedExport) -> AsyncIterator[bytes]:
    """Yield the bytes of the bundle, which are the same as long as the campaign does not change.

    Raises:
        CampaignChanged: before the list of digests, so that readers refuse the archive.
    """
    pending = bytearray()
    with tempfile.SpooledTemporaryFile(_SUMS_IN_MEMORY) as sums:
        async for name, content in _members(engine, prepared.campaign_id, prepared.header):
            sums.write(sums_line(name, hashlib.sha256(content).hexdigest()))
            pending += member_head(name, len(content)) + content + member_tail(len(content))
            if len(pending) >= _BLOCK:
                yield bytes(pending)
                pending.clear()
        async with engine.connect() as connection:
            if await queries.campaign_size(connection, prepared.campaign_id) != prepared.size:
                raise CampaignChanged("the campaign changed while it was exported; export it again.")
        size = sums.tell()
        sums.seek(0)
        yield bytes(pending) + member_head(SUMS, size)
        while piece := sums.read(_BLOCK):
            yield piece
    yield member_tail(size) + ARCHIVE_END


async def _members(engine: AsyncEngine, campaign_id: UUID, header: BundleHeader) -> _Members:
    yield HEADER, _line(header.model_dump_json())
    async with engine.connect() as connection:
        [row] = await queries.json_rows(connection, queries.CAMPAIGN, id=campaign_id)
        inputs = await queries.named_inputs(connection, campaign_id)
        workers = await queries.json_rows(connection, queries.WORKERS, id=campaign_id)
    yield CAMPAIGN, _line(row)
    for sha256 in _datasets(inputs):
        yield f"datasets/{sha256}.json", _line((await datasets.get_dataset(engine, sha256)).model_dump_json())
    for number, worker in enumerate(workers):
        yield f"workers/{number:06d}.jsonl", _line(worker)
    async for member in _files(engine, BundledExperiment, campaign_id, "experiments"):
        yield member
    async for member in _runs(engine, campaign_id):
        yield member
    position, number = -1, 0
    while True:
        async with engine.connect() as connection:
            attempt = await queries.next_attempt(connection, campaign_id, position=position, number=number)
        if attempt is None:
            return
        position, number = attempt.position, attempt.number
        async for member in _attempt(engine, attempt):
            yield member


def _datasets(inputs: list[queries.NamedInputs]) -> list[str]:
    """Return the digests of sets of prompts and traces; also built-in sets, whose texts may differ between versions."""
    builtin = {one.name: one.sha256 for one in datasets.builtin_sets()}
    prompts = [one.dataset or builtin.get(one.builtin or DEFAULT_PROMPT_SET) for one in inputs]
    return sorted({sha256 for sha256 in (*prompts, *(one.trace for one in inputs)) if sha256 is not None})


async def _pages(engine: AsyncEngine, model: type[BundledRow], owner: UUID) -> AsyncIterator[list[ExportedRow]]:
    """Yield the rows of a campaign or attempt in pages that fit into a member."""
    after = model.first
    while True:
        async with engine.connect() as connection:
            rows = await queries.page(connection, model, owner, after)
        if not rows:
            return
        rows = rows[: _rows_that_fit(one.json for one in rows)]
        yield rows
        after = rows[-1].cursor


async def _files(engine: AsyncEngine, model: type[BundledRow], owner: UUID, folder: str) -> _Members:
    page = 0
    async for rows in _pages(engine, model, owner):
        yield f"{folder}/{page:06d}.jsonl", _lines([one.json for one in rows])
        page += 1


async def _runs(engine: AsyncEngine, campaign_id: UUID) -> _Members:
    page = 0
    after: tuple[int | str, ...] = BundledRun.first
    while True:
        async with engine.connect() as connection:
            rows = await queries.page(connection, BundledRun, campaign_id, after)
            if not rows:
                return
            log = await _transitions(connection, campaign_id, rows)
            # The whole histories of a page of runs are one member.
            while len(rows) > 1 and _rows_that_fit(log) < len(log):
                rows = rows[: len(rows) // 2]
                log = await _transitions(connection, campaign_id, rows)
        yield f"runs/{page:06d}.jsonl", _lines([one.json for one in rows])
        yield f"transitions/{page:06d}.jsonl", _lines(log)
        after, page = rows[-1].cursor, page + 1


async def _transitions(connection: AsyncConnection, campaign_id: UUID, runs: list[ExportedRow]) -> list[str]:
    (first,), (last,) = runs[0].cursor, runs[-1].cursor
    return await queries.json_rows(connection, queries.TRANSITIONS, id=campaign_id, first=first, last=last)


async def _attempt(engine: AsyncEngine, attempt: queries.ExportedAttempt) -> _Members:
    folder = f"attempts/{format_id(IdKind.ATTEMPT, attempt.id)}"
    yield f"{folder}/attempt.json", _line(attempt.json)
    async for [marker] in _pages(engine, BundledProcessResult, attempt.id):
        yield f"{folder}/processes/{marker.cursor[0]}.json", _line(marker.json)
    async for member in _files(engine, BundledLeaseEvent, attempt.id, f"{folder}/lease_events"):
        yield member
    async for member in _files(engine, BundledLog, attempt.id, f"{folder}/logs"):
        yield member
    for stream in await reading.streams_of(engine, attempt.id):
        for chunk in stream.chunks:
            chunk_key = ChunkKey(attempt.id, stream.process, stream.stream, chunk.seq)
            body, _ = await evidence.read_chunk(engine, chunk_key)
            yield f"{folder}/evidence/{stream.process}/{stream.stream.value}/{chunk.seq:06d}.arrow", body
    key = b""
    while True:
        async with engine.connect() as connection:
            aggregate = await queries.next_aggregate(connection, attempt.id, after=key)
        if aggregate is None:
            return
        key = bytes.fromhex(aggregate.key)
        yield f"{folder}/aggregates/{aggregate.key}.json", _line(aggregate.json)
        yield f"{folder}/aggregates/{aggregate.key}.result.json", aggregate.result.encode()


def _rows_that_fit(rows: Iterable[str]) -> int:
    """Count the rows whose texts fit into a member of `_PAGE_BYTES`; at least one."""
    size = 0
    for number, row in enumerate(rows):
        size += len(row)
        if number and size > _PAGE_BYTES:
            return number
    return _NO_LIMIT


def _line(text: str) -> bytes:
    return text.encode() + b"\n"


def _lines(rows: list[str]) -> bytes:
    return b"".join(map(_line, rows))
