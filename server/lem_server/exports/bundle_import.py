"""Imports a bundle: verified from end to end first, then stored in one transaction."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import IO

from anyio import to_thread
from pydantic import ValidationError
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from lem_domain.bundle import BundleError, BundleHeader, BundleReader, Verified, verify
from lem_domain.errors import ProblemCode
from lem_domain.evidence.codec import ChunkError
from lem_domain.evidence.streams import StreamName
from lem_domain.ids import IdKind, format_id, parse_id
from lem_domain.results.run import RunResult
from lem_domain.wire.campaigns import ImportedBundle, ImportOrigin
from lem_domain.wire.datasets import DatasetContent, DatasetUpload
from lem_server.aggregation.identity import aggregate_key, evidence_digest
from lem_server.campaigns.reading import get_campaign
from lem_server.datasets import service as datasets
from lem_server.evidence import service as evidence
from lem_server.evidence.validation import ChunkKey
from lem_server.exports import bundle_rows as rows
from lem_server.exports import import_queries as queries
from lem_server.http.problems import ProblemError

_CHUNK = re.compile(r"attempts/att_[0-9a-f]{32}/evidence/([^/]+)/([^/]+)/([0-9]+)\.arrow")
_STORED_AS_THEY_ARE: dict[str, type[rows.BundledRow]] = {
    "experiments": rows.BundledExperiment,
    "attempts/processes": rows.BundledProcessResult,
    "attempts/lease_events": rows.BundledLeaseEvent,
    "attempts/logs": rows.BundledLog,
}
_INVALID_HISTORY = "LE004"
"""SQLSTATE of `lem_import_runs`."""


async def import_bundle(engine: AsyncEngine, file: IO[bytes], *, imported_by: str) -> ImportedBundle:
    """Store the campaign of a bundle under its own ids, marked as imported; importing it again changes nothing.

    Raises:
        ProblemError: `bundle_invalid`, or `conflict` where the server has the campaign, or an id of it, already.
    """
    try:
        verified = await to_thread.run_sync(verify, file)
        file.seek(0)
        async with engine.begin() as connection:
            importing = _Import(connection, verified, imported_by)
            new = await importing.run(file)
            return ImportedBundle(
                campaign=await get_campaign(connection, importing.campaign_id),
                new=new,
                **verified.header.model_dump(include={"experiments", "runs", "attempts", "chunks", "evidence_bytes"}),
            )
    except BundleError as error:
        raise ProblemError(ProblemCode.BUNDLE_INVALID, str(error)) from error
    except DBAPIError as error:
        raise _refusal(error) or error from error


class _Import:
    """One import. Members come in order: runs before their transitions, an attempt before its evidence."""

    def __init__(self, connection: AsyncConnection, verified: Verified, imported_by: str) -> None:
        self.campaign_id = parse_id(IdKind.CAMPAIGN, verified.header.campaign_id)
        self._connection = connection
        self._verified = verified
        self._imported_by = imported_by
        self._runs: tuple[str, rows.CheckedRows] | None = None
        self._attempt: _Attempt | None = None
        self._chunks = 0

    async def run(self, file: IO[bytes]) -> bool:
        """Store everything; return False when the same bundle was imported before."""
        reader = BundleReader(file)
        members = reader.members()
        while True:
            member = await to_thread.run_sync(next, members, None)
            if member is None:
                break
            content = await to_thread.run_sync(reader.whole) if member.name != "SHA256SUMS" else b""
            if member.name == "campaign.json":
                if not await self._campaign(member.name, content):
                    return False
            elif member.name not in ("bundle.json", "SHA256SUMS"):
                await self._member(member.name, content)
        await self._end_of_attempt()
        await self._require_complete(self._verified.header)
        return True

    async def _campaign(self, name: str, content: bytes) -> bool:
        [row], checked = rows.read_rows(name, content, rows.BundledCampaign)
        if row.id != self.campaign_id:
            raise BundleError(f"{name} is not of the bundle's campaign; import the file as it was exported.")
        origin = ImportOrigin(
            bundle_sha256=self._verified.sha256,
            lem_version=self._verified.header.lem_version,
            imported_at=datetime.now(UTC),
            imported_by=self._imported_by,
        )
        if await queries.insert_campaign(self._connection, checked, imported=origin.model_dump_json()):
            return True
        existing = await queries.bundle_of(self._connection, self.campaign_id)
        if existing == self._verified.sha256:
            return False
        raise ProblemError(
            ProblemCode.CONFLICT,
            f"{self._verified.header.campaign_id} is on this server already, "
            + ("imported from another bundle" if existing else "and was submitted to it")
            + "; nothing was imported.",
        )

    async def _member(self, name: str, content: bytes) -> None:
        folder, *path = name.split("/")
        kind = f"attempts/{path[1]}" if folder == "attempts" else folder
        if kind == "attempts/attempt.json":
            await self._end_of_attempt()
            await self._begin_attempt(name, path[0], content)
        elif folder == "attempts" and (self._attempt is None or self._attempt.folder != path[0]):
            raise BundleError(f"{name} does not follow its attempt; import the file as it was exported.")
        elif kind in _STORED_AS_THEY_ARE:
            _, checked = self._own_rows(name, content, _STORED_AS_THEY_ARE[kind])
            await queries.insert_rows(self._connection, checked)
        elif kind == "datasets":
            await self._dataset(name, content)
        elif kind == "workers":
            _, checked = rows.read_rows(name, content, rows.BundledWorker)
            await queries.insert_workers(self._connection, checked)
        elif kind == "runs":
            _, checked = self._own_rows(name, content, rows.BundledRun)
            self._runs = (name, checked)
        elif folder == "attempts" and self._attempt is not None:
            await self._evidence(name, kind, self._attempt, content)
        else:
            await self._transitions(name, content)

    def _own_rows(self, name: str, content: bytes, model: type[rows.R]) -> tuple[list[rows.R], rows.CheckedRows]:
        """Read rows, and refuse one of another campaign, or of another attempt than the one that is being read."""
        found, checked = rows.read_rows(name, content, model)
        owners = {"campaign": self.campaign_id}
        if self._attempt is not None:
            owners |= {"attempt": self._attempt.row.id, "run": self._attempt.row.run_id}
        for kind, owner in owners.items():
            if any(getattr(row, f"{kind}_id", owner) != owner for row in found):
                raise BundleError(f"{name} holds a row of another {kind}; import the file as it was exported.")
        return found, checked

    async def _dataset(self, name: str, content: bytes) -> None:
        try:
            dataset = DatasetContent.model_validate_json(content)
            upload = DatasetUpload(name=dataset.name, prompts=dataset.texts)
            await datasets.store(self._connection, name.removeprefix("datasets/").removesuffix(".json"), upload)
        except ValidationError:
            raise BundleError(f"{name} is not a set of prompts; import the file as it was exported.") from None
        except ProblemError as error:
            raise BundleError(f"{name}: {error}") from error

    async def _transitions(self, name: str, content: bytes) -> None:
        if self._runs is None or self._runs[0] != name.replace("transitions/", "runs/"):
            raise BundleError(f"{name} does not follow its runs; import the file as it was exported.")
        _, checked = self._own_rows(name, content, rows.BundledTransition)
        await queries.insert_runs(self._connection, self.campaign_id, self._runs[1], checked)
        self._runs = None

    async def _begin_attempt(self, name: str, folder: str, content: bytes) -> None:
        [row], checked = rows.read_rows(name, content, rows.BundledAttempt)
        if format_id(IdKind.ATTEMPT, row.id) != folder:
            raise BundleError(f"{name} belongs to another attempt; import the file as it was exported.")
        if not await queries.insert_of_run(self._connection, self.campaign_id, checked):
            raise BundleError(f"{name} belongs to no run of the bundle; import the file as it was exported.")
        self._attempt = _Attempt(folder, row)

    async def _evidence(self, name: str, kind: str, attempt: _Attempt, content: bytes) -> None:
        """Store a chunk, or an aggregate: its row, then its result."""
        if kind == "attempts/evidence":
            await self._chunk(name, attempt, content)
        elif attempt.aggregate is None or name != attempt.aggregate[0]:
            [row], checked = self._own_rows(name, content, rows.BundledAggregate)
            attempt.aggregate = (name.removesuffix(".json") + ".result.json", row, checked)
        else:
            await self._aggregate(name, attempt, attempt.aggregate[1], attempt.aggregate[2], content)
            attempt.aggregate = None

    async def _chunk(self, name: str, attempt: _Attempt, content: bytes) -> None:
        path = _CHUNK.fullmatch(name)
        known = {stream.value: stream for stream in StreamName}
        if path is None or path[2] not in known:
            raise BundleError(f"{name} belongs to a stream that this version does not know; update it.")
        key = ChunkKey(attempt.row.id, path[1], known[path[2]], int(path[3]))
        try:
            sha256 = await evidence.import_chunk(self._connection, key, content)
        except ChunkError as error:
            raise BundleError(f"{name}: {error}") from error
        attempt.chunks.append((key.process, key.stream.value, key.seq, sha256))
        self._chunks += 1

    async def _aggregate(
        self, name: str, attempt: _Attempt, row: rows.BundledAggregate, checked: rows.CheckedRows, content: bytes
    ) -> None:
        try:
            result = RunResult.model_validate_json(content)
        except ValidationError:
            raise BundleError(f"{name} is not a result that this version can read; update it.") from None
        evidence_sha256 = row.evidence_sha256.removeprefix("\\x")
        consistent = (
            aggregate_key(result) == row.key.removeprefix("\\x"),
            (result.method, result.parameters) == (row.method, row.parameters),
            evidence_digest(attempt.chunks) == evidence_sha256 == result.evidence_sha256,
            result.run_id == format_id(IdKind.RUN, row.run_id) and result.attempt_id == attempt.folder,
        )
        if not all(consistent):
            raise BundleError(f"{name} is not the result of the attempt's evidence; export the bundle again.")
        if not await queries.insert_of_run(self._connection, self.campaign_id, checked, result=content.decode()):
            raise BundleError(f"{name} belongs to no run of the bundle; import the file as it was exported.")

    async def _end_of_attempt(self) -> None:
        attempt, self._attempt = self._attempt, None
        if self._runs is not None:
            raise BundleError(f"{self._runs[0]} has no transitions; import the file as it was exported.")
        if attempt is None:
            return
        if attempt.aggregate is not None:
            raise BundleError(f"{attempt.aggregate[0]} is missing; export the bundle again.")
        if attempt.row.outcome == "completed":
            try:
                await evidence.verify_manifest(
                    self._connection, attempt.row.id, processes=(), manifest=attempt.row.manifest or ()
                )
            except ProblemError as error:
                raise BundleError(f"the evidence of {attempt.folder} is incomplete: {error}") from error

    async def _require_complete(self, header: BundleHeader) -> None:
        stored = await queries.counts(self._connection, self.campaign_id)
        announced = queries.Counts(header.experiments, header.runs, header.attempts, dangling=0)
        if stored != announced or self._chunks != header.chunks:
            raise BundleError(
                "the bundle does not hold the experiments, runs, attempts and chunks that its header announces; "
                "import the file as it was exported."
            )


@dataclass
class _Attempt:
    """The attempt whose members are being read."""

    folder: str
    row: rows.BundledAttempt
    chunks: list[tuple[str, str, int, str]] = field(default_factory=list)
    aggregate: tuple[str, rows.BundledAggregate, rows.CheckedRows] | None = None


def _refusal(error: DBAPIError) -> ProblemError | None:
    """Translate an error of the data; None for an error of the database itself."""
    state = str(getattr(error.orig, "sqlstate", None))
    detail = str(error.orig).split(": ", 1)[-1].partition("\n")[0]
    if state == "23505":
        return ProblemError(
            ProblemCode.CONFLICT,
            f"the server already has an id of the bundle ({detail}); nothing was imported.",
        )
    if state[:2] in ("22", "23", "42") or state == _INVALID_HISTORY:
        return ProblemError(
            ProblemCode.BUNDLE_INVALID, f"the bundle can't be stored ({detail}); import the file as it was exported."
        )
    return None
