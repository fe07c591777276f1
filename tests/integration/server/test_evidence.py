"""Raw evidence: stored byte for byte, never changed, and refused where it can't be true."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import httpx
import pytest

from factories.evidence import Evidence, MadeChunk, manifest_of, ns
from factories.runs import submit
from factories.worker import FakeWorker, plain_evidence, sha256_header
from lem_domain.evidence.codec import encode_chunk
from lem_domain.evidence.streams import MAX_CHUNK_BYTES, SAMPLER, STREAMS, StreamName

pytestmark = pytest.mark.anyio

NO_BYTES_MATCH = sha256_header(b"another body")


@pytest.fixture
async def worker(api: httpx.AsyncClient) -> FakeWorker:
    """A worker, and a run that it may claim."""
    await submit(api)
    return await FakeWorker(api).ready()


@pytest.fixture
async def attempt(worker: FakeWorker) -> str:
    """The worker's attempt; its window is open."""
    return (await worker.started()).attempt_id


def power_chunk() -> MadeChunk:
    return next(chunk for chunk in plain_evidence().chunks() if chunk.stream is StreamName.POWER)


def other_chunk() -> MadeChunk:
    return next(chunk for chunk in plain_evidence(watts=51).chunks() if chunk.stream is StreamName.POWER)


def refusal(answer: httpx.Response) -> tuple[int, str]:
    assert answer.headers["content-type"] == "application/problem+json", answer.text
    return answer.status_code, answer.json()["code"]


async def stored(api: httpx.AsyncClient, attempt: str) -> list[dict[str, object]]:
    found: list[dict[str, object]] = (await api.get(f"/api/v1/attempts/{attempt}/streams")).json()["items"]
    return found


def place(attempt: str, chunk: MadeChunk) -> str:
    return f"/api/v1/attempts/{attempt}/processes/{chunk.process}/streams/{chunk.stream.value}/chunks/{chunk.seq}"


# --- chunks -----------------------------------------------------------------------------------------------------------


async def test_a_chunk_is_read_back_byte_for_byte(api: httpx.AsyncClient, worker: FakeWorker, attempt: str) -> None:
    for chunk in plain_evidence(chunk_rows=10).chunks():
        answer = await worker.put_chunk(attempt, chunk)
        assert (answer.status_code, answer.json()) == (201, {"new": True, "cancel": False})
        read = await api.get(place(attempt, chunk))
        assert read.content == chunk.body
        assert read.headers["content-digest"] == sha256_header(chunk.body)
        assert read.headers["content-type"] == "application/vnd.apache.arrow.stream"


async def test_the_same_bytes_again_are_welcome_also_after_the_completion(worker: FakeWorker, attempt: str) -> None:
    chunks = await worker.send(attempt, plain_evidence())
    again = await worker.put_chunk(attempt, chunks[0])
    assert (again.status_code, again.json()["new"]) == (200, False)
    assert (await worker.complete(attempt, chunks)).status_code == 200
    again = await worker.put_chunk(attempt, chunks[0])
    assert (again.status_code, again.json()["new"]) == (200, False)
    assert refusal(await worker.put_chunk(attempt, replace(chunks[0], seq=7))) == (409, "lease_lost")


async def test_the_same_chunk_sent_many_times_at_once_is_stored_once(
    api: httpx.AsyncClient, worker: FakeWorker, attempt: str
) -> None:
    chunk = power_chunk()
    answers = await asyncio.gather(*(worker.put_chunk(attempt, chunk) for _ in range(6)))
    assert sorted(answer.status_code for answer in answers) == [200] * 5 + [201]
    assert (await api.get(place(attempt, chunk))).content == chunk.body


async def test_other_bytes_under_a_number_are_refused(api: httpx.AsyncClient, worker: FakeWorker, attempt: str) -> None:
    chunk = power_chunk()
    await worker.put_chunk(attempt, chunk)
    assert refusal(await worker.put_chunk(attempt, other_chunk())) == (409, "chunk_conflict")
    assert (await api.get(place(attempt, chunk))).content == chunk.body


async def test_bytes_that_are_not_those_of_the_digest_are_refused(
    api: httpx.AsyncClient, worker: FakeWorker, attempt: str
) -> None:
    answer = await worker.put_chunk(attempt, power_chunk(), Content_Digest=NO_BYTES_MATCH)
    assert refusal(answer) == (422, "digest_mismatch")
    assert await stored(api, attempt) == []


async def test_another_media_type_is_refused(worker: FakeWorker, attempt: str) -> None:
    answer = await worker.put_chunk(attempt, power_chunk(), Content_Type="application/octet-stream")
    assert refusal(answer) == (415, "unsupported_media_type")


@pytest.mark.parametrize(
    "header", ["", "nonsense", "sha-512=:AAAA:", "sha-256=AAAA", "sha-256=:AAAA:", "sha-256=:not base64!:", "sha-256=:"]
)
async def test_a_digest_header_that_cannot_be_read_is_refused(worker: FakeWorker, attempt: str, header: str) -> None:
    assert refusal(await worker.put_chunk(attempt, power_chunk(), Content_Digest=header)) == (400, "bad_request")


async def test_a_digest_header_may_name_other_digests_too(worker: FakeWorker, attempt: str) -> None:
    chunk = power_chunk()
    header = f"sha-512=:AAAA:, {sha256_header(chunk.body)}"
    assert (await worker.put_chunk(attempt, chunk, Content_Digest=header)).status_code == 201


async def test_a_body_above_the_limit_is_refused(worker: FakeWorker, attempt: str) -> None:
    body = bytes(MAX_CHUNK_BYTES + 1)
    assert refusal(await worker.put_bytes(attempt, body)) == (413, "payload_too_large")


async def test_a_body_above_the_limit_is_refused_without_its_length_too(worker: FakeWorker, attempt: str) -> None:
    body = bytes(MAX_CHUNK_BYTES + 1)

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(body), 2**16):
            yield body[start : start + 2**16]

    answer = await worker.api.put(
        place(attempt, power_chunk()),
        content=pieces(),
        headers={
            **worker.headers,
            "Content-Type": "application/vnd.apache.arrow.stream",
            "Content-Digest": sha256_header(body),
        },
    )
    assert "content-length" not in answer.request.headers
    assert refusal(answer) == (413, "payload_too_large")


async def test_a_compression_bomb_is_refused(api: httpx.AsyncClient, worker: FakeWorker, attempt: str) -> None:
    body = encode_chunk(StreamName.EVENTS, {"time_ns": [1], "kind": ["bomb"], "detail": ["x" * (40 * 2**20)]})
    assert len(body) < MAX_CHUNK_BYTES
    assert refusal(await worker.put_bytes(attempt, body, stream=StreamName.EVENTS)) == (413, "decompression_limit")
    assert await stored(api, attempt) == []


def rows(made: Evidence) -> MadeChunk:
    (chunk,) = made.chunks()
    return chunk


def backwards() -> MadeChunk:
    made = Evidence()
    made.power([1.0, 2.0, 1.5], watts=lambda _: 50.0)
    return rows(made)


def negative_time() -> MadeChunk:
    made = Evidence()
    made.row(SAMPLER, StreamName.POWER, device_index=0, time_ns=-1, power_mw=1)
    return rows(made)


def no_rows() -> MadeChunk:
    made = Evidence()
    made.rows[SAMPLER, StreamName.POWER] = {column.name: [] for column in STREAMS[StreamName.POWER]}
    return rows(made)


def last_token_before_the_first() -> MadeChunk:
    made = Evidence()
    made.row(
        "rank-0",
        StreamName.REQUESTS,
        request_id=0,
        prompt_index=0,
        arrival_ns=ns(0),
        first_token_ns=ns(2),
        last_token_ns=ns(1),
        prompt_tokens=1,
        generated_tokens=2,
    )
    return rows(made)


def first_token_before_the_arrival() -> MadeChunk:
    made = Evidence()
    made.request(0, 5.0, [4.0], record_tokens=False)
    return rows(made)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (backwards, "in order"),
        (negative_time, "negative time"),
        (no_rows, "no rows"),
        (last_token_before_the_first, "last_token_ns"),
        (first_token_before_the_arrival, "arrival_ns"),
    ],
)
async def test_rows_that_cannot_be_true_are_refused(
    api: httpx.AsyncClient,
    worker: FakeWorker,
    attempt: str,
    make: Callable[[], MadeChunk],
    words: str,
) -> None:
    answer = await worker.put_chunk(attempt, make())
    assert refusal(answer) == (422, "evidence_invalid")
    assert words in answer.json()["detail"]
    assert await stored(api, attempt) == []


@pytest.mark.parametrize("body", [b"", b"no arrow stream at all"])
async def test_a_body_that_is_no_arrow_stream_is_refused(worker: FakeWorker, attempt: str, body: bytes) -> None:
    assert refusal(await worker.put_bytes(attempt, body)) == (422, "evidence_invalid")


async def test_a_chunk_of_another_stream_is_refused(worker: FakeWorker, attempt: str) -> None:
    answer = await worker.put_bytes(attempt, power_chunk().body, stream=StreamName.PHASES)
    assert refusal(answer) == (422, "evidence_invalid")
    assert "columns are not those of stream phases" in answer.json()["detail"]


async def test_what_is_stored_is_listed_with_its_digests(
    api: httpx.AsyncClient, worker: FakeWorker, attempt: str
) -> None:
    assert await stored(api, attempt) == []
    chunks = plain_evidence(chunk_rows=10).chunks()
    kept = [chunk for chunk in chunks if not (chunk.stream is StreamName.POWER and chunk.seq == 1)]
    for chunk in reversed(kept):
        await worker.put_chunk(attempt, chunk)
    listed = await stored(api, attempt)
    assert listed == [
        {
            "process": one.process,
            "stream": one.stream.value,
            "chunks": [
                {
                    "seq": chunk.seq,
                    "rows": chunk.rows,
                    "bytes": len(chunk.body),
                    "sha256": hashlib.sha256(chunk.body).hexdigest(),
                }
                for chunk in kept
                if (chunk.process, chunk.stream) == (one.process, one.stream)
            ],
        }
        for one in manifest_of(kept)
    ]


async def test_nothing_is_listed_or_read_of_an_unknown_attempt(api: httpx.AsyncClient, attempt: str) -> None:
    unknown = "att_" + "0" * 32
    assert refusal(await api.get(f"/api/v1/attempts/{unknown}/streams")) == (404, "not_found")
    assert refusal(await api.get(place(unknown, power_chunk()))) == (404, "not_found")
    assert refusal(await api.get(place(attempt, power_chunk()))) == (404, "not_found")


# --- logs and completions ---------------------------------------------------------------------------------------------


async def test_a_log_keeps_its_words_and_shows_what_a_text_cannot_hold(
    api: httpx.AsyncClient, worker: FakeWorker, attempt: str
) -> None:
    for _ in range(2):
        answer = await worker.put_log(attempt, "a\x00b – ünïcode\n")
        assert answer.status_code in (200, 201)
    assert (answer.status_code, answer.json()["new"]) == (200, False)
    run = (await api.get(f"/api/v1/attempts/{attempt}")).json()["run_id"]
    (piece,) = (await api.get(f"/api/v1/runs/{run}/logs")).json()["items"]
    assert (piece["process"], piece["seq"], piece["text"]) == ("rank-0", 0, "a\N{REPLACEMENT CHARACTER}b – ünïcode\n")


async def test_other_words_under_a_number_are_refused(worker: FakeWorker, attempt: str) -> None:
    await worker.put_log(attempt, "first")
    assert refusal(await worker.put_log(attempt, "second")) == (409, "chunk_conflict")
    assert (await worker.put_log(attempt, "second", seq=1)).status_code == 201
    assert (await worker.put_log(attempt, "second", process=SAMPLER)).status_code == 201


async def test_a_completion_marker_never_changes(worker: FakeWorker, attempt: str) -> None:
    chunks, summary = plain_evidence().chunks(), {"warmup_converged": True, "cv": 0.1, "large": 1e22, "none": None}
    first = await worker.put_completion(attempt, "rank-0", chunks, summary)
    assert (first.status_code, first.json()["new"]) == (201, True)
    again = await worker.put_completion(attempt, "rank-0", chunks, summary)
    assert (again.status_code, again.json()["new"]) == (200, False)
    assert refusal(await worker.put_completion(attempt, "rank-0", chunks, {})) == (409, "conflict")
    assert refusal(await worker.put_completion(attempt, "rank-0", [], summary)) == (409, "conflict")
    assert (await worker.put_completion(attempt, SAMPLER, chunks)).status_code == 201


async def test_a_process_has_a_known_name(worker: FakeWorker, attempt: str) -> None:
    assert refusal(await worker.put_completion(attempt, "rank-00")) == (422, "validation")
    assert refusal(await worker.put_log(attempt, "words", process="stranger")) == (422, "validation")


@pytest.mark.parametrize("where", ["message", "environment", "summary"])
async def test_what_a_worker_says_may_hold_a_null_character(worker: FakeWorker, attempt: str, where: str) -> None:
    said = "out of\x00memory"
    if where == "summary":
        answer = await worker.put_completion(attempt, "rank-0", [], {said: [{"said": said}]})
    else:
        body: dict[str, Any] = {"outcome": "failed", "reason": "inference", "message": "it broke"}
        body |= {"message": said} if where == "message" else {"environment": {"said": said}}
        answer = await worker.api.post(f"/api/v1/attempts/{attempt}:end", json=body, headers=worker.headers)
        shown = "it broke" if where == "environment" else "out of\N{REPLACEMENT CHARACTER}memory"
        assert answer.json()["message"] == shown
    assert answer.is_success, answer.text
