"""Takes a bundle in: verified from end to end first, then stored in one transaction, all of it or nothing."""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import IO
from uuid import UUID

from anyio import to_thread
from pydantic import ValidationError
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from lem_domain.bundle import BundleError, BundleHeader, BundleReader, Member, Verified, verify
from lem_domain.errors import ProblemCode
from lem_domain.evidence.codec import ChunkError
from lem_domain.evidence.streams import StreamName
from lem_domain.ids import IdKind, format_id, parse_id
from lem_domain.results.run import RunResult
from lem_domain.wire.campaigns import ImportedBundle, ImportOrigin
from lem_domain.wire.datasets import DatasetContent, DatasetUpload
from lem_server.aggregation.identity import aggregate_key, evidence_digest
from lem_server.aggregation.models import aggregates
from lem_server.attempts.models import attempts
from lem_server.campaigns import service as campaigns
from lem_server.campaigns.models import campaigns as campaigns_table
from lem_server.campaigns.models import experiments
from lem_server.datasets import service as datasets
from lem_server.evidence import service as evidence
from lem_server.evidence.models import logs, process_results
from lem_server.exports import import_queries as queries
from lem_server.exports import rows
from lem_server.http.problems import ProblemError
from lem_server.leases.models import lease_events
from lem_server.runs.models import run_transitions, runs
from lem_server.workers.models import workers

_OWN = frozenset({"imported"})
_OWN_OF_LOG = frozenset({"id", "xact", "imported"})
_OWN_OF_WORKER = frozenset({"boot_id", "host", "signed_off_at"})
_CHUNK = re.compile(r"attempts/att_[0-9a-f]{32}/evidence/([^/]+)/([^/]+)/([0-9]+)\.arrow")
_HISTORY = "LE004"


async def import_bundle(engine: AsyncEngine, file: IO[bytes], *, imported_by: str) -> ImportedBundle:
    """Store the campaign of a bundle under the ids that it has, marked as measured elsewhere.

    The same bundle again changes nothing.

    Raises:
        ProblemError: `bundle_invalid`, or `conflict` where a campaign, or something of it, has one of its ids here.
    """
    try:
        whole = await to_thread.run_sync(verify, file)
        file.seek(0)
        async with engine.begin() as connection:
            taking = _Taking(connection, whole, imported_by)
            new = await taking.begin(file)
            return ImportedBundle(
                campaign=await campaigns.get_within(connection, taking.campaign_id),
                new=new,
                **whole.header.model_dump(include={"experiments", "runs", "attempts", "chunks", "evidence_bytes"}),
            )
    except BundleError as error:
        raise ProblemError(ProblemCode.BUNDLE_INVALID, str(error)) from error
    except DBAPIError as error:
        raise _refusal(error) or error from error


class _Taking:
    """One import: what it has seen so far decides what may come next."""

    def __init__(self, connection: AsyncConnection, whole: Verified, imported_by: str) -> None:
        self.campaign_id = parse_id(IdKind.CAMPAIGN, whole.header.campaign_id)
        self._connection = connection
        self._whole = whole
        self._imported_by = imported_by
        self._runs: tuple[str, list[rows.RunRow], rows.Given] | None = None
        self._attempt: _Attempt | None = None
        self._chunks = 0

    async def begin(self, file: IO[bytes]) -> bool:
        """Store everything; False when the same bundle had been imported before."""
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
                await self._member(member, content)
        await self._end_of_attempt()
        await self._require_whole(self._whole.header)
        return True

    async def _campaign(self, name: str, content: bytes) -> bool:
        row, given = rows.read_row(name, content, rows.CampaignRow, campaigns_table, without=_OWN)
        if row.id != self.campaign_id:
            raise BundleError(f"{name} is of another campaign than the bundle; import the file as it was exported.")
        origin = ImportOrigin(
            bundle_sha256=self._whole.sha256,
            lem_version=self._whole.header.lem_version,
            imported_at=datetime.now(UTC),
            imported_by=self._imported_by,
        )
        if await queries.insert_campaign(self._connection, given, imported=origin.model_dump_json()):
            return True
        there = await queries.bundle_of(self._connection, self.campaign_id)
        if there == self._whole.sha256:
            return False
        raise ProblemError(
            ProblemCode.CONFLICT,
            f"{self._whole.header.campaign_id} is on this server already, "
            + ("from another bundle" if there else "where it was submitted")
            + "; nothing was imported.",
        )

    async def _member(self, member: Member, content: bytes) -> None:
        kind = member.name.split("/")[2 if member.name.startswith("attempts/") else 0]
        if member.name.startswith("attempts/"):
            await self._of_attempt(member.name, kind, content)
        elif kind == "datasets":
            await self._dataset(member.name, content)
        elif kind == "workers":
            _, given = rows.read_rows(member.name, content, rows.WorkerRow, workers, without=_OWN_OF_WORKER)
            await queries.insert_workers(self._connection, given)
        elif kind == "experiments":
            found, given = rows.read_rows(member.name, content, rows.ExperimentRow, experiments)
            self._require_ours(member.name, (one.campaign_id for one in found))
            await queries.insert_rows(self._connection, experiments, given)
        elif kind == "runs":
            brought, given = rows.read_rows(member.name, content, rows.RunRow, runs, without=_OWN)
            self._require_ours(member.name, (one.campaign_id for one in brought))
            self._runs = (member.name, brought, given)
        else:
            await self._histories(member.name, content)

    async def _dataset(self, name: str, content: bytes) -> None:
        try:
            given = DatasetContent.model_validate_json(content)
            upload = DatasetUpload(name=given.name, prompts=given.texts)
            await datasets.store(self._connection, name.removeprefix("datasets/").removesuffix(".json"), upload)
        except ValidationError:
            raise BundleError(f"{name} is no set of prompts; import the file as it was exported.") from None
        except ProblemError as error:
            raise BundleError(f"{name}: {error}") from error

    async def _histories(self, name: str, content: bytes) -> None:
        if self._runs is None or self._runs[0] != name.replace("transitions/", "runs/"):
            raise BundleError(f"{name} does not stand behind its runs; import the file as it was exported.")
        log, given = rows.read_history(name, content, run_transitions, without=_OWN_OF_LOG)
        self._require_ours(name, (one.campaign_id for one in log))
        await queries.insert_runs(self._connection, self.campaign_id, self._runs[2], given)
        self._runs = None

    async def _of_attempt(self, name: str, kind: str, content: bytes) -> None:
        folder = name.split("/")[1]
        if kind == "attempt.json":
            await self._end_of_attempt()
            self._attempt = await self._begin_attempt(name, folder, content)
            return
        attempt = self._attempt
        if attempt is None or attempt.folder != folder:
            raise BundleError(f"{name} does not stand behind its attempt; import the file as it was exported.")
        if kind == "processes":
            process, given = rows.read_row(name, content, rows.ProcessRow, process_results)
            attempt.require(name, process.attempt_id)
            await queries.insert_rows(self._connection, process_results, given)
        elif kind == "lease_events":
            events, given = rows.read_rows(name, content, rows.LeaseEventRow, lease_events, without=frozenset({"id"}))
            attempt.require(name, *(one.attempt_id for one in events))
            attempt.require_run(name, *(one.run_id for one in events))
            await queries.insert_rows(self._connection, lease_events, given)
        elif kind == "logs":
            pieces, given = rows.read_rows(name, content, rows.LogRow, logs)
            attempt.require(name, *(one.attempt_id for one in pieces))
            await queries.insert_rows(self._connection, logs, given)
        elif kind == "evidence":
            await self._chunk(name, attempt, content)
        elif attempt.aggregate is None or name != attempt.aggregate[0]:
            row, given = rows.read_row(name, content, rows.AggregateRow, aggregates, without=frozenset({"result"}))
            attempt.require(name, row.attempt_id)
            attempt.require_run(name, row.run_id)
            attempt.aggregate = (name.removesuffix(".json") + ".result.json", row, given)
        else:
            await self._aggregate(name, attempt, attempt.aggregate[1], attempt.aggregate[2], content)
            attempt.aggregate = None

    async def _begin_attempt(self, name: str, folder: str, content: bytes) -> _Attempt:
        row, given = rows.read_row(name, content, rows.AttemptRow, attempts)
        if format_id(IdKind.ATTEMPT, row.id) != folder:
            raise BundleError(f"{name} is of another attempt; import the file as it was exported.")
        if not await queries.insert_attempt(self._connection, self.campaign_id, given):
            raise BundleError(f"{name} belongs to no run of the bundle; import the file as it was exported.")
        return _Attempt(folder, row)

    async def _chunk(self, name: str, attempt: _Attempt, content: bytes) -> None:
        place = _CHUNK.fullmatch(name)
        known = {stream.value: stream for stream in StreamName}
        if place is None or place[2] not in known:
            raise BundleError(f"{name} is of a stream that this version does not know; update it.")
        seq = int(place[3])
        try:
            sha256 = await evidence.import_chunk(
                self._connection, attempt.row.id, process=place[1], stream=known[place[2]], seq=seq, body=content
            )
        except ChunkError as error:
            raise BundleError(f"{name}: {error}") from error
        attempt.chunks.append((place[1], place[2], seq, sha256))
        self._chunks += 1

    async def _aggregate(
        self, name: str, attempt: _Attempt, row: rows.AggregateRow, given: rows.Given, content: bytes
    ) -> None:
        try:
            result = RunResult.model_validate_json(content)
        except ValidationError:
            raise BundleError(f"{name} is no result that this version can read; update it.") from None
        evidence_sha256 = row.evidence_sha256.removeprefix("\\x")
        as_said = (
            aggregate_key(result) == row.key.removeprefix("\\x"),
            (result.method, result.parameters) == (row.method, row.parameters),
            evidence_digest(attempt.chunks) == evidence_sha256 == result.evidence_sha256,
            result.run_id == format_id(IdKind.RUN, row.run_id) and result.attempt_id == attempt.folder,
        )
        if not all(as_said):
            raise BundleError(f"{name} is not the result of the evidence beside it; get the bundle again.")
        if not await queries.insert_aggregate(self._connection, self.campaign_id, given, result=content.decode()):
            raise BundleError(f"{name} belongs to no run of the bundle; import the file as it was exported.")

    async def _end_of_attempt(self) -> None:
        attempt, self._attempt = self._attempt, None
        if self._runs is not None:
            raise BundleError(f"{self._runs[0]} comes without its transitions; import the file as it was exported.")
        if attempt is None:
            return
        if attempt.aggregate is not None:
            raise BundleError(f"{attempt.aggregate[0]} is missing; get the bundle again.")
        if attempt.row.outcome == "completed":
            try:
                await evidence.verify_manifest(
                    self._connection, attempt.row.id, processes=(), manifest=attempt.row.manifest or ()
                )
            except ProblemError as error:
                raise BundleError(f"the evidence of {attempt.folder} is not whole: {error}") from error

    async def _require_whole(self, header: BundleHeader) -> None:
        found = await queries.stored(self._connection, self.campaign_id)
        said = (header.experiments, header.runs, header.attempts, 0)
        if found != said or self._chunks != header.chunks:
            raise BundleError(
                "the bundle does not hold the experiments, runs, attempts and chunks that it names; "
                "import the file as it was exported."
            )

    def _require_ours(self, name: str, campaign_ids: Iterable[UUID]) -> None:
        if any(one != self.campaign_id for one in campaign_ids):
            raise BundleError(f"{name} holds a row of another campaign; import the file as it was exported.")


class _Attempt:
    """The attempt whose members are being read."""

    def __init__(self, folder: str, row: rows.AttemptRow) -> None:
        self.folder = folder
        self.row = row
        self.chunks: list[tuple[str, str, int, str]] = []
        self.aggregate: tuple[str, rows.AggregateRow, rows.Given] | None = None

    def require(self, name: str, *ids: UUID) -> None:
        """Rows of a member must be of this attempt."""
        if any(one != self.row.id for one in ids):
            raise BundleError(f"{name} holds a row of another attempt; import the file as it was exported.")

    def require_run(self, name: str, *ids: UUID) -> None:
        """Rows of a member must be of this attempt's run."""
        if any(one != self.row.run_id for one in ids):
            raise BundleError(f"{name} holds a row of another run; import the file as it was exported.")


def _refusal(error: DBAPIError) -> ProblemError | None:
    """What the database can't store is the bundle's fault, but where the database itself has a problem."""
    state = str(getattr(error.orig, "sqlstate", None))
    said = str(error.orig).split(": ", 1)[-1].partition("\n")[0]
    if state == "23505":
        return ProblemError(
            ProblemCode.CONFLICT,
            f"something of the bundle is on this server already ({said}); nothing was imported.",
        )
    if state[:2] in ("22", "23", "42") or state == _HISTORY:
        return ProblemError(
            ProblemCode.BUNDLE_INVALID, f"the bundle can't be stored ({said}); import the file as it was exported."
        )
    return None
