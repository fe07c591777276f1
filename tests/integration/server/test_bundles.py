"""A campaign leaves one server as one archive and comes to another whole, with the same results; anything else is
refused, and then nothing of it is stored."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import re
import tarfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import text
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from factories.bundles import File, pack, unpack, with_row, without
from factories.runs import move, run_ids, submit
from factories.worker import FakeWorker, plain_evidence
from lem_domain.bundle import BundleError, verify
from lem_domain.ids import IdKind, parse_id
from lem_domain.prompt_sets import prompts_digest
from lem_domain.states import ActorKind
from lem_server.access.service import OWNER_TOKEN_FILE
from lem_server.app import create_app
from lem_server.database.engine import make_engine
from lem_server.exports import bundle_export
from lem_server.runs.transitions import set_actor
from lem_server.settings import Settings

pytestmark = pytest.mark.anyio

TRACE = ("0.0", "0.5")
PROMPTS = ("Why is the sky blue?", "What is a watt? ☀\u2028")
TAR = {"Content-Type": "application/x-tar"}


@pytest.fixture
async def other_engine(other_database_url: URL) -> AsyncIterator[AsyncEngine]:
    """The second server's database."""
    made = make_engine(other_database_url)
    yield made
    await made.dispose()


@pytest.fixture
async def elsewhere(other_database_url: URL, tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    """A second server, and a client with its owner's token."""
    settings = Settings(data_dir=tmp_path / "elsewhere", trusted_hosts=("testserver",))
    made = create_app(settings, other_database_url)
    async with made.router.lifespan_context(made):
        token = (settings.data_dir / OWNER_TOKEN_FILE).read_text().strip()
        transport = httpx.ASGITransport(app=made, raise_app_exceptions=False)
        headers = {"Authorization": f"Bearer {token}"}
        async with httpx.AsyncClient(transport=transport, base_url="http://testserver", headers=headers) as client:
            yield client


@pytest.fixture
async def campaign(api: httpx.AsyncClient, engine: AsyncEngine) -> dict[str, Any]:
    """A campaign at rest: one run aggregated, one failed and then completed, one cancelled, one interrupted."""
    digest, trace = prompts_digest(PROMPTS), prompts_digest(TRACE)
    for name, texts in (("questions", PROMPTS), ("arrivals", TRACE)):
        uploaded = {"name": name, "prompts": texts}
        answer = await api.put(f"/api/v1/datasets/{prompts_digest(texts)}", json=uploaded)
        assert answer.status_code == 201, answer.text
    view = await submit(
        api,
        name="a study/1",
        experiment={
            "backend": "simulated",
            "model": "m",
            "prompts": {"dataset": digest},
            "warmup": {"cv_threshold": 1e-3},
            "traffic": {"mode": "open", "arrivals": "trace", "trace": trace},
        },
        sweep={"simulated.batch_size": [1, 8]},
        execution={"cycles": 2, "retries": 1},
        labels={"project": "x"},
    )
    worker = await FakeWorker(api).ready()
    first = await worker.whole_attempt(plain_evidence(chunk_rows=10))
    assert (await api.post(f"/api/v1/runs/{first.run_id}:aggregate")).status_code == 200
    failing = await worker.started()
    await worker.put_log(failing.attempt_id, "it broke: \x1b[31m…\n")
    await worker.send(failing.attempt_id, plain_evidence(seconds=1))
    await worker.end(failing.attempt_id)
    again = await worker.whole_attempt(plain_evidence(watts=70))
    assert again.run_id == failing.run_id
    runs = await run_ids(api, view)
    await api.post(f"/api/v1/runs/{runs[2]}:cancel")
    last = await worker.started()
    await worker.end(last.attempt_id, "interrupted", "worker_shutdown", "it left")
    await api.post(f"/api/v1/campaigns/{view['id']}:pause")
    found = (await api.get(f"/api/v1/campaigns/{view['id']}")).json()
    if found["runs"]["queued"]:
        await move(engine, last.run_id, "cancelled", actor=ActorKind.USER)
    return (await api.get(f"/api/v1/campaigns/{view['id']}")).json()  # type: ignore[no-any-return]


@pytest.fixture
async def bundle(api: httpx.AsyncClient, campaign: dict[str, Any]) -> bytes:
    """The campaign as an archive."""
    return await exported(api, campaign["id"])


async def exported(api: httpx.AsyncClient, campaign: str) -> bytes:
    answer = await api.get(f"/api/v1/campaigns/{campaign}/bundle")
    assert answer.status_code == 200, answer.text
    return answer.content


async def take_in(api: httpx.AsyncClient, archive: bytes) -> httpx.Response:
    return await api.post("/api/v1/campaigns:import", content=archive, headers=TAR)


async def everything(api: httpx.AsyncClient, campaign: str) -> dict[str, Any]:
    """All that the API says of a campaign, with every chunk and result byte for byte."""

    async def items(path: str, **parameters: Any) -> list[dict[str, Any]]:
        answer = await api.get(f"/api/v1/{path}", params={"limit": 500, **parameters} if "streams" not in path else {})
        assert answer.status_code == 200, answer.text
        assert answer.json()["next"] is None
        return answer.json()["items"]  # type: ignore[no-any-return]

    async def content(path: str) -> bytes:
        answer = await api.get(f"/api/v1/{path}")
        return answer.content if answer.is_success else b""

    found: dict[str, Any] = {
        "campaign": (await api.get(f"/api/v1/campaigns/{campaign}")).json() | {"imported": None},
        "experiments": await items(f"campaigns/{campaign}/experiments"),
        "runs": await items("runs", campaign_id=campaign),
        "results": (await api.get(f"/api/v1/campaigns/{campaign}/results")).json(),
        "bytes": {},
    }
    for run in found["runs"]:
        for part in ("transitions", "lease_events", "attempts", "logs"):
            found[f"{run['id']} {part}"] = [
                one | {"received_at": 0} if part == "logs" else one for one in await items(f"runs/{run['id']}/{part}")
            ]
        found["bytes"][run["id"]] = await content(f"runs/{run['id']}/aggregate")
        for attempt in found[f"{run['id']} attempts"]:
            for stream in await items(f"attempts/{attempt['id']}/streams"):
                for chunk in stream["chunks"]:
                    place = f"processes/{stream['process']}/streams/{stream['stream']}/chunks/{chunk['seq']}"
                    found["bytes"][f"{attempt['id']} {place}"] = await content(f"attempts/{attempt['id']}/{place}")
    return found


async def stored(engine: AsyncEngine) -> dict[str, int]:
    """How many rows there are in every table that an import writes to."""
    names = (
        "campaigns",
        "experiments",
        "runs",
        "run_transitions",
        "attempts",
        "process_results",
        "logs",
        "chunks",
        "aggregates",
        "datasets",
        "workers",
        "lease_events",
    )
    async with engine.connect() as connection:
        return {name: (await connection.execute(text(f"SELECT count(*) FROM {name}"))).scalar_one() for name in names}


# --- there and back ---------------------------------------------------------------------------------------------------


async def test_another_server_shows_all_of_it_and_computes_the_same_bytes(
    api: httpx.AsyncClient, elsewhere: httpx.AsyncClient, campaign: dict[str, Any], bundle: bytes
) -> None:
    answer = await take_in(elsewhere, bundle)
    assert answer.status_code == 201, answer.text
    said = answer.json()
    assert said["new"] is True
    assert (said["experiments"], said["runs"], said["attempts"]) == (2, 4, 4)
    origin = said["campaign"]["imported"]
    assert origin["bundle_sha256"] == hashlib.sha256(unpack(bundle)[-1].content).hexdigest()
    assert origin["imported_by"].startswith("owner")
    there, here = await everything(elsewhere, campaign["id"]), await everything(api, campaign["id"])
    assert there == here
    assert sum(1 for key in here["bytes"] if "chunks" in key) >= 10
    assert (await elsewhere.get(f"/api/v1/datasets/{prompts_digest(PROMPTS)}")).json()["texts"] == list(PROMPTS)
    assert (await elsewhere.get(f"/api/v1/datasets/{prompts_digest(TRACE)}")).json()["texts"] == list(TRACE)
    for run in here["runs"]:
        both = [await client.post(f"/api/v1/runs/{run['id']}:aggregate") for client in (api, elsewhere)]
        assert both[0].status_code == both[1].status_code
        if run["state"] in ("aggregated", "completed"):
            assert both[0].status_code == 200
            assert both[0].content == both[1].content


async def test_one_campaign_at_rest_is_always_the_same_archive_wherever_it_is(
    api: httpx.AsyncClient, elsewhere: httpx.AsyncClient, campaign: dict[str, Any], bundle: bytes
) -> None:
    assert await exported(api, campaign["id"]) == bundle
    await take_in(elsewhere, bundle)
    assert await exported(elsewhere, campaign["id"]) == bundle


async def test_any_tool_can_read_it_and_check_its_digests(bundle: bytes) -> None:
    *files, sums = unpack(bundle)
    names = [one.name for one in files]
    assert names[:2] == ["bundle.json", "campaign.json"]
    assert {f"datasets/{prompts_digest(one)}.json" for one in (PROMPTS, TRACE)} <= set(names)
    assert sums.name == "SHA256SUMS"
    said: dict[str, str] = dict(line.split("  ")[::-1] for line in sums.content.decode().splitlines())
    assert said == {one.name: hashlib.sha256(one.content).hexdigest() for one in files}
    assert verify(io.BytesIO(pack(files))).sha256 == verify(io.BytesIO(bundle)).sha256


async def test_it_holds_no_host_name_and_no_token(bundle: bytes, server_settings: Settings) -> None:
    assert b"host-1" not in bundle
    assert (server_settings.data_dir / OWNER_TOKEN_FILE).read_bytes().strip() not in bundle


async def test_the_same_bundle_again_changes_nothing(
    elsewhere: httpx.AsyncClient, other_engine: AsyncEngine, bundle: bytes
) -> None:
    first = await take_in(elsewhere, bundle)
    before = await stored(other_engine)
    again = await take_in(elsewhere, bundle)
    assert (first.status_code, again.status_code) == (201, 200)
    assert again.json() == first.json() | {"new": False}
    assert await stored(other_engine) == before


async def test_where_it_was_submitted_it_is_not_imported(
    api: httpx.AsyncClient, engine: AsyncEngine, bundle: bytes
) -> None:
    before = await stored(engine)
    answer = await take_in(api, bundle)
    assert (answer.status_code, answer.json()["code"]) == (409, "conflict")
    assert "submitted" in answer.json()["detail"]
    assert await stored(engine) == before


async def test_another_bundle_of_the_same_campaign_is_refused(
    api: httpx.AsyncClient, elsewhere: httpx.AsyncClient, campaign: dict[str, Any], bundle: bytes
) -> None:
    assert (await take_in(elsewhere, bundle)).status_code == 201
    runs = await run_ids(api, campaign)
    answers = [await api.post(f"/api/v1/runs/{run}:aggregate") for run in runs]
    assert any(answer.status_code == 200 for answer in answers[1:])
    answer = await take_in(elsewhere, await exported(api, campaign["id"]))
    assert (answer.status_code, answer.json()["code"]) == (409, "conflict")
    assert "from another bundle" in answer.json()["detail"]


async def test_a_worker_that_is_known_there_stays_what_it_is(
    elsewhere: httpx.AsyncClient, campaign: dict[str, Any], bundle: bytes
) -> None:
    row = json.loads(next(one for one in unpack(bundle) if one.name.startswith("workers/")).content)
    worker = FakeWorker(elsewhere, id=f"wrk_{row['id'].replace('-', '')}")
    await worker.ready()
    assert (await take_in(elsewhere, bundle)).status_code == 201
    view = (await elsewhere.get(f"/api/v1/workers/{worker.id}")).json()
    assert (view["state"], view["host"]) == ("online", "host-1")


async def test_a_worker_that_is_not_is_offline_and_counts_for_nothing(
    elsewhere: httpx.AsyncClient, bundle: bytes
) -> None:
    await take_in(elsewhere, bundle)
    (worker,) = (await elsewhere.get("/api/v1/workers")).json()["items"]
    assert (worker["state"], worker["host"]) == ("offline", "imported")
    plan = await elsewhere.post(
        "/api/v1/campaigns:plan", json={"name": "n", "experiment": {"backend": "simulated", "model": "m"}}
    )
    assert "No registered worker" in plan.json()["notes"][0]


# --- a record ---------------------------------------------------------------------------------------------------------


async def test_nothing_of_it_is_ever_claimed_or_tried_again(
    elsewhere: httpx.AsyncClient, campaign: dict[str, Any], bundle: bytes
) -> None:
    await take_in(elsewhere, bundle)
    runs = await run_ids(elsewhere, campaign)
    before = await everything(elsewhere, campaign["id"])
    for path in (f"campaigns/{campaign['id']}:retry_failed", *(f"runs/{run}:retry" for run in runs)):
        answer = await elsewhere.post(f"/api/v1/{path}")
        assert (answer.status_code, answer.json()["code"]) == (409, "conflict"), path
    for path in (f"campaigns/{campaign['id']}:cancel", *(f"runs/{run}:cancel" for run in runs)):
        assert (await elsewhere.post(f"/api/v1/{path}")).status_code == 200
    assert await everything(elsewhere, campaign["id"]) == before
    worker = await FakeWorker(elsewhere).ready()
    assert (await worker.claim()).status_code == 204


KEPT = {
    "UPDATE runs SET state = 'queued' WHERE state IN ('failed', 'interrupted', 'cancelled')": "LE001",
    "UPDATE runs SET imported = false": "LE004",
    "UPDATE campaigns SET imported = NULL": "LE004",
    "INSERT INTO runs SELECT * FROM runs": "LE004",
    "INSERT INTO run_transitions (run_id, campaign_id, target, actor, actor_name) "
    "SELECT id, campaign_id, 'queued', 'user', 'me' FROM runs": "42501",
}


async def test_the_database_itself_keeps_it_as_it_is(
    elsewhere: httpx.AsyncClient, other_engine: AsyncEngine, bundle: bytes
) -> None:
    await take_in(elsewhere, bundle)
    for statement, sqlstate in KEPT.items():
        with pytest.raises(DBAPIError) as caught:
            async with other_engine.begin() as connection:
                await set_actor(connection, ActorKind.USER, "tester")
                await connection.execute(text(statement))
        assert getattr(caught.value.orig, "sqlstate", None) == sqlstate, statement


async def test_a_run_that_was_submitted_here_cannot_be_passed_off_as_imported(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    campaign = parse_id(IdKind.CAMPAIGN, (await submit(api))["id"])
    row = {"id": "00000000-0000-0000-0000-000000000001", "state": "aggregated"}
    with pytest.raises(DBAPIError, match="imported run"):
        async with engine.begin() as connection:
            await connection.execute(
                text("SELECT lem_import_runs(:id, CAST(:runs AS jsonb), '[]')"),
                {"id": campaign, "runs": json.dumps([row])},
            )


async def test_the_log_says_which_entries_came_from_elsewhere(
    elsewhere: httpx.AsyncClient, other_engine: AsyncEngine, campaign: dict[str, Any], bundle: bytes
) -> None:
    await take_in(elsewhere, bundle)
    completed = [
        one["id"] for one in (await everything(elsewhere, campaign["id"]))["runs"] if one["state"] == "completed"
    ]
    assert (await elsewhere.post(f"/api/v1/runs/{completed[0]}:aggregate")).status_code == 200
    async with other_engine.connect() as connection:
        rows = await connection.execute(
            text("SELECT target, imported FROM run_transitions WHERE run_id = :id ORDER BY id"),
            {"id": parse_id(IdKind.RUN, completed[0])},
        )
        assert [tuple(row) for row in rows][-2:] == [("completed", True), ("aggregated", False)]


# --- what can't be exported -------------------------------------------------------------------------------------------


async def test_a_campaign_that_is_not_at_rest_is_refused(api: httpx.AsyncClient) -> None:
    view = await submit(api)
    answer = await api.get(f"/api/v1/campaigns/{view['id']}/bundle")
    assert (answer.status_code, answer.json()["code"]) == (409, "conflict")
    assert answer.json()["detail"].startswith("1 runs of the campaign")


async def test_one_that_is_not_there(api: httpx.AsyncClient) -> None:
    answer = await api.get(f"/api/v1/campaigns/cmp_{'0' * 32}/bundle")
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


async def test_what_changes_while_it_is_written_is_never_whole(
    api: httpx.AsyncClient, engine: AsyncEngine, campaign: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundle_export, "_BLOCK", 1)
    blocks = bundle_export.blocks(
        engine, await bundle_export.prepare(engine, parse_id(IdKind.CAMPAIGN, campaign["id"]))
    )
    sent = await anext(blocks)
    for run in await run_ids(api, campaign):
        await api.post(f"/api/v1/runs/{run}:aggregate")
    with pytest.raises(bundle_export.CampaignChanged):
        async for block in blocks:
            sent += block
    with pytest.raises(BundleError, match="truncated"):
        verify(io.BytesIO(sent))


# --- what can't be imported -------------------------------------------------------------------------------------------


def flipped(archive: bytes, name: str) -> bytes:
    files = unpack(archive)
    place = next(index for index, one in enumerate(files) if name in one.name)
    spoilt = bytearray(files[place].content)
    spoilt[len(spoilt) // 2] ^= 1
    sums = files[-1].content
    files[place] = File(files[place].name, bytes(spoilt))
    return pack(files, sums=sums)


def with_entry(archive: bytes, **entry: Any) -> bytes:
    """The archive with another member at its end, and digests that are right for all others."""
    files = unpack(archive)
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w:", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in files[:-1]:
            made = tarfile.TarInfo(name)
            made.size = len(content)
            tar.addfile(made, io.BytesIO(content))
        made = tarfile.TarInfo("x")
        for key, value in entry.items():
            setattr(made, key, value)
        tar.addfile(made, io.BytesIO(b"x" * made.size))
    return written.getvalue()


def huge(archive: bytes) -> bytes:
    """A member that says it is 8 GiB."""
    made = tarfile.TarInfo("campaign.json")
    made.size = 2**33 - 1
    first = tarfile.TarInfo("bundle.json")
    content = unpack(archive)[0].content
    first.size = len(content)
    return first.tobuf() + content + b"\0" * (-len(content) % 512) + made.tobuf(tarfile.USTAR_FORMAT)


def header(**changed: Any) -> Callable[[bytes], bytes]:
    return lambda archive: with_row(archive, "bundle.json", lambda row: row.update(changed))


def row(name: str, line: int = 0, **changed: Any) -> Callable[[bytes], bytes]:
    return lambda archive: with_row(archive, name, lambda found: found.update(changed), line=line)


def doubled(name: str) -> Callable[[bytes], bytes]:
    def twice(archive: bytes) -> bytes:
        files = unpack(archive)
        place = next(index for index, one in enumerate(files) if name in one.name)
        return pack([*files[: place + 1], files[place], *files[place + 1 :]])

    return twice


OTHER = "00000000-0000-0000-0000-00000000000a"

REFUSED: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda _: b"", "not a bundle"),
    "text": (lambda _: b"name: x\n" * 200, "not a bundle"),
    "gzip": (gzip.compress, r"the file is compressed \(gzip\)"),
    "zip": (lambda _: b"PK\x03\x04" + b"\0" * 600, r"the file is compressed \(zip\)"),
    "cut in a member": (lambda archive: archive[: len(archive) // 2], "truncated"),
    "cut before its end": (lambda archive: archive[: -20 * 512], "truncated|damaged"),
    "without digests": (
        lambda archive: pack(unpack(archive))[:0] + with_entry(archive, name="SHA256SUMS", size=0),
        "SHA256SUMS",
    ),
    "more behind it": (lambda archive: archive + b"more", "after its end"),
    "a byte of evidence": (lambda archive: flipped(archive, "evidence/"), "SHA256SUMS"),
    "a byte of a row": (lambda archive: flipped(archive, "experiments/"), "SHA256SUMS"),
    "up and out": (lambda archive: with_entry(archive, name="../../etc/cron.d/x", size=1), "not part of a bundle"),
    "absolute": (lambda archive: with_entry(archive, name="/etc/passwd", size=1), "not part of a bundle"),
    "hidden in a known folder": (
        lambda archive: with_entry(archive, name="runs/../../x.jsonl", size=1),
        "not part of a bundle",
    ),
    "a link": (
        lambda archive: with_entry(archive, name="runs/000009.jsonl", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
        "not a regular file",
    ),
    "a folder": (lambda archive: with_entry(archive, name="runs", type=tarfile.DIRTYPE), "not a regular file"),
    "a sparse file": (
        lambda archive: with_entry(archive, name="campaign.json", type=tarfile.GNUTYPE_SPARSE),
        "not a regular file",
    ),
    "a bomb": (huge, "campaign.json in the bundle has 8589934591 bytes"),
    "of the future": (
        header(version=2, lem_version="9.0"),
        r"format 2 \(of LEM 9.0\)",
    ),
    "no header": (header(format="something"), "bundle.json is invalid"),
    "another campaign's header": (header(campaign_id="cmp_" + "1" * 32), "campaign.json"),
    "fewer runs than it says": (header(runs=5), "does not hold the experiments, runs"),
    "a column of the future": (
        row("campaign.json", shine=1),
        "has the field 'shine', which this version does not know",
    ),
    "a campaign without a plan": (row("campaign.json", spec={}), "campaign.json: spec"),
    "another configuration": (row("experiments/", config={"model": "other"}), "config does not have its config_hash"),
    "a wrong prompt": (
        lambda archive: with_row(archive, "datasets/", lambda found: found["texts"].append("x")),
        "datasets/.*the prompts have the digest",
    ),
    "a run that is queued": (row("runs/", state="queued"), "a bundle holds runs that have ended"),
    "a state without its history": (
        row("runs/", state="failed"),
        "the history of run [0-9a-f]{32}",
    ),
    "an edge that nobody may take": (row("transitions/", 1, actor="user"), "the history of run"),
    "a history with a hole": (row("transitions/", 1, source="failed"), "the history of run"),
    "a run of another campaign": (row("runs/", campaign_id=OTHER), "holds a row of another campaign"),
    "a run of another experiment": (row("runs/", experiment_id=OTHER), r"can't be stored \(.*violates foreign key"),
    "an attempt of another run": (row("attempts/", run_id=OTHER), "belongs to no run of the bundle"),
    "an attempt of another name": (row("attempts/", id=OTHER), "belongs to another attempt"),
    "a number that no column holds": (row("runs/", priority=10**9), "can't be stored"),
    "a secret that is no device": (row("attempts/", device_details=[{"uuid": "x"}]), "attempt.json: device_details"),
    "without a chunk of a result": (
        lambda archive: without(archive, "/evidence/rank-0/tokens/"),
        "is not the result of",
    ),
    "without a chunk of a run that was not aggregated": (
        lambda archive: without(archive, "/evidence/rank-0/tokens/", last=True),
        "the evidence of att_.*: 1 chunks are missing",
    ),
    "without a result": (lambda archive: without(archive, ".result.json"), "result.json is missing"),
    "without transitions": (lambda archive: without(archive, "transitions/"), "transitions"),
    "runs twice": (doubled("transitions/"), "transitions/"),
    "a result of other evidence": (
        lambda archive: with_row(
            archive,
            next(one.name for one in unpack(archive) if ".result.json" in one.name),
            lambda found: found.update(run_id="run_" + "1" * 32),
        ),
        "is not the result of",
    ),
}


async def test_it_is_refused_with_one_sentence_and_nothing_is_stored(
    elsewhere: httpx.AsyncClient, other_engine: AsyncEngine, bundle: bytes
) -> None:
    otherwise = []
    for how, (spoil, sentence) in REFUSED.items():
        answer = await take_in(elsewhere, spoil(bundle))
        said, detail = (answer.status_code, answer.json()["code"]), answer.json()["detail"]
        if said != (422, "bundle_invalid") or not re.search(sentence, detail) or "\n" in detail:
            otherwise.append((how, said, detail))
        assert set((await stored(other_engine)).values()) == {0}, how
    assert otherwise == []
    assert (await take_in(elsewhere, bundle)).status_code == 201


async def test_a_chunk_twice_is_refused(elsewhere: httpx.AsyncClient, other_engine: AsyncEngine, bundle: bytes) -> None:
    answer = await take_in(elsewhere, doubled("evidence/")(bundle))
    assert (answer.status_code, answer.json()["code"]) == (409, "chunk_conflict")
    assert set((await stored(other_engine)).values()) == {0}


async def test_ids_that_are_taken_here_are_not_taken_over(
    api: httpx.AsyncClient, engine: AsyncEngine, bundle: bytes
) -> None:
    """The same runs under another campaign: the database's keys refuse them, and the original stays."""
    other = "11111111-1111-1111-1111-111111111111"
    old = json.loads(unpack(bundle)[1].content)["id"]
    files = [File(one.name, one.content.replace(old.encode(), other.encode())) for one in unpack(bundle)]
    renamed = [
        File(one.name, one.content.replace(b"cmp_" + old.replace("-", "").encode(), b"cmp_" + b"1" * 32))
        for one in files
    ]
    before = await stored(engine)
    answer = await take_in(api, pack(renamed))
    assert (answer.status_code, answer.json()["code"]) == (409, "conflict"), answer.text
    assert await stored(engine) == before


async def test_another_kind_of_body_is_refused(elsewhere: httpx.AsyncClient) -> None:
    answer = await elsewhere.post("/api/v1/campaigns:import", json={})
    assert (answer.status_code, answer.json()["code"]) == (415, "unsupported_media_type")


async def test_what_the_disk_has_no_room_for_is_refused_before_it_is_sent(elsewhere: httpx.AsyncClient) -> None:
    answer = await elsewhere.post(
        "/api/v1/campaigns:import", content=b"", headers={**TAR, "Content-Length": str(2**36 + 1)}
    )
    assert (answer.status_code, answer.json()["code"]) == (413, "payload_too_large")


async def test_reading_exports_and_administration_imports(
    api: httpx.AsyncClient, campaign: dict[str, Any], bundle: bytes
) -> None:
    for kind, taken in (("user", 403), ("worker", 403), ("owner", 409)):
        token = (await api.post("/api/v1/tokens", json={"name": kind, "kind": kind})).json()["token"]
        headers = {"Authorization": f"Bearer {token}"}
        answer = await api.get(f"/api/v1/campaigns/{campaign['id']}/bundle", headers=headers)
        assert answer.status_code == 200
        answer = await api.post("/api/v1/campaigns:import", content=bundle, headers={**TAR, **headers})
        assert answer.status_code == taken
