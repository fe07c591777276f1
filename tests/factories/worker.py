"""A scripted worker: the real protocol over the test's HTTP client, without a measurement.

Calls return the raw answer, so that a test can examine refusals too. The methods for steps that must succeed (`ready`,
`claimed`, `started`, `send`, `whole_attempt`) check it.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

import httpx

from factories.evidence import Evidence, MadeChunk, manifest_of, simulated
from lem_domain.evidence.streams import CHUNK_MEDIA_TYPE, SAMPLER, StreamName
from lem_domain.ids import IdKind, format_id
from lem_domain.wire.base import BOOT_HEADER, PROTOCOL_HEADER, PROTOCOL_VERSION, WORKER_HEADER
from lem_domain.wire.workers import Assignment

EFFECTIVE_CONFIG: dict[str, Any] = {"engine": "simulated 1", "parameters": []}
ENVIRONMENT: dict[str, Any] = {"python": "3.11"}


def sha256_header(body: bytes) -> str:
    """The Content-Digest of a body (RFC 9530)."""
    return f"sha-256=:{base64.b64encode(hashlib.sha256(body).digest()).decode()}:"


def device_body(uuid: str, name: str = "Simulated device") -> dict[str, str]:
    """A simulated device with this UUID."""
    return {"uuid": uuid, "kind": "simulated", "name": name}


def plain_evidence(*, seconds: int = 4, watts: float = 50.0, chunk_rows: int = 1000) -> Evidence:
    """One request of `4 * seconds` tokens over `seconds` s, one simulated device that draws a constant power.

    Every stream is longer than a chunk of a few rows, so that `chunk_rows` makes several.
    """
    made = Evidence(devices=(simulated(),), chunk_rows=chunk_rows)
    made.request(0, 0.0, [0.25 * (index + 1) for index in range(4 * seconds)])
    made.power([0.1 * index - 1.0 for index in range(10 * (seconds + 2))], watts=lambda _: watts)
    return made


@dataclass
class FakeWorker:
    """A scripted worker of one boot; `reboot` gives the next boot of the same worker."""

    api: httpx.AsyncClient
    backend: str = "simulated"
    devices: int = 1
    uuids: tuple[str, ...] = ()
    id: str = field(default_factory=lambda: format_id(IdKind.WORKER, uuid4()))
    boot: UUID = field(default_factory=uuid4)
    protocol: int = PROTOCOL_VERSION
    names: dict[str, str] = field(default_factory=dict)
    """Names of devices by UUID, where a test needs them."""

    def __post_init__(self) -> None:
        self.uuids = self.uuids or tuple(f"SIM-{uuid4().hex[:12]}" for _ in range(self.devices))

    @property
    def headers(self) -> dict[str, str]:
        """The headers that identify the worker and its boot."""
        return {WORKER_HEADER: self.id, BOOT_HEADER: str(self.boot), PROTOCOL_HEADER: str(self.protocol)}

    def reboot(self) -> FakeWorker:
        """The same worker under a new boot, not registered yet."""
        return FakeWorker(self.api, self.backend, self.devices, self.uuids, self.id)

    # --- calls of the worker ------------------------------------------------------------------------------------------

    async def register(self) -> httpx.Response:
        """Announce this boot."""
        return await self._post(
            "/api/v1/workers",
            id=self.id,
            boot_id=str(self.boot),
            name="fake-1",
            host="host-1",
            backend=self.backend,
            devices=[device_body(uuid, self.names.get(uuid, "Simulated device")) for uuid in self.uuids],
        )

    async def claim(
        self,
        *,
        claim_id: UUID | None = None,
        wait_s: float = 0,
        devices: Sequence[str] | None = None,
        warm_c: float | None = None,
    ) -> httpx.Response:
        """Claim a run; `warm_c` is the temperature of all its devices."""
        return await self._post(
            f"/api/v1/workers/{self.id}/claims",
            claim_id=str(claim_id or uuid4()),
            boot_id=str(self.boot),
            devices=list(self.uuids if devices is None else devices),
            temperatures_c={} if warm_c is None else dict.fromkeys(self.uuids, warm_c),
            wait_s=wait_s,
        )

    async def beat(self, *attempts: str, progress: dict[str, Any] | None = None) -> httpx.Response:
        """Send a heartbeat for these attempts."""
        return await self._post(
            f"/api/v1/workers/{self.id}/heartbeat",
            boot_id=str(self.boot),
            attempts=[{"attempt_id": attempt, "progress": progress} for attempt in attempts],
        )

    async def sign_off(self) -> httpx.Response:
        """Sign off."""
        return await self._post(f"/api/v1/workers/{self.id}:sign_off", boot_id=str(self.boot))

    # --- calls of an attempt ------------------------------------------------------------------------------------------

    async def start(self, attempt: str) -> httpx.Response:
        """Start an attempt."""
        return await self._post(
            f"/api/v1/attempts/{attempt}:start", environment=ENVIRONMENT, effective_config=EFFECTIVE_CONFIG
        )

    async def put_chunk(self, attempt: str, chunk: MadeChunk, **headers: str) -> httpx.Response:
        """Send one chunk; `headers` replace or add some, with `_` for `-`."""
        return await self.put_bytes(attempt, chunk.body, chunk.process, chunk.stream, chunk.seq, **headers)

    async def put_bytes(
        self,
        attempt: str,
        body: bytes,
        process: str = SAMPLER,
        stream: StreamName = StreamName.POWER,
        seq: int = 0,
        **headers: str,
    ) -> httpx.Response:
        """Send any bytes as a chunk."""
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        usual = {"Content-Type": CHUNK_MEDIA_TYPE, "Content-Digest": sha256_header(body)}
        return await self.api.put(
            f"/api/v1/attempts/{attempt}/processes/{process}/streams/{stream.value}/chunks/{seq}",
            content=body,
            headers={**self.headers, **usual, **given},
        )

    async def put_log(self, attempt: str, text: str, *, process: str = "rank-0", seq: int = 0) -> httpx.Response:
        """Send a piece of log."""
        return await self.api.put(
            f"/api/v1/attempts/{attempt}/processes/{process}/logs/{seq}", json={"text": text}, headers=self.headers
        )

    async def put_completion(
        self, attempt: str, process: str, chunks: Iterable[MadeChunk] = (), summary: dict[str, Any] | None = None
    ) -> httpx.Response:
        """Send a process's completion marker."""
        streams = manifest_of([chunk for chunk in chunks if chunk.process == process])
        return await self.api.put(
            f"/api/v1/attempts/{attempt}/processes/{process}/completion",
            json={"streams": [one.model_dump(mode="json") for one in streams], "summary": summary or {}},
            headers=self.headers,
        )

    async def complete(
        self, attempt: str, chunks: Sequence[MadeChunk], processes: Sequence[str] = ("rank-0", SAMPLER)
    ) -> httpx.Response:
        """Send the manifest of these chunks."""
        return await self._post(
            f"/api/v1/attempts/{attempt}:complete",
            processes=list(processes),
            manifest=[one.model_dump(mode="json") for one in manifest_of(chunks)],
        )

    async def end(
        self, attempt: str, outcome: str = "failed", reason: str = "inference", message: str = "it broke"
    ) -> httpx.Response:
        """End an attempt without a result."""
        return await self._post(f"/api/v1/attempts/{attempt}:end", outcome=outcome, reason=reason, message=message)

    # --- steps that must succeed --------------------------------------------------------------------------------------

    async def ready(self) -> FakeWorker:
        """Register."""
        answer = await self.register()
        assert answer.status_code == 200, answer.text
        return self

    async def claimed(self) -> Assignment:
        """Claim the next run."""
        answer = await self.claim()
        assert answer.status_code == 200, answer.text
        return Assignment.model_validate_json(answer.content)

    async def started(self) -> Assignment:
        """Claim the next run and start it."""
        assignment = await self.claimed()
        answer = await self.start(assignment.attempt_id)
        assert answer.status_code == 200, answer.text
        return assignment

    async def send(self, attempt: str, evidence: Evidence) -> list[MadeChunk]:
        """Send all chunks and completion markers."""
        chunks = evidence.chunks()
        for chunk in chunks:
            answer = await self.put_chunk(attempt, chunk)
            assert answer.status_code == 201, answer.text
        for process in evidence.processes:
            answer = await self.put_completion(attempt, process, chunks, evidence.summaries[process])
            assert answer.status_code == 201, answer.text
        return chunks

    async def whole_attempt(self, evidence: Evidence | None = None) -> Assignment:
        """Claim, start, send and complete."""
        evidence = evidence or plain_evidence()
        assignment = await self.started()
        chunks = await self.send(assignment.attempt_id, evidence)
        answer = await self.complete(assignment.attempt_id, chunks, evidence.processes)
        assert answer.status_code == 200, answer.text
        return assignment

    async def _post(self, path: str, **body: Any) -> httpx.Response:
        return await self.api.post(path, json=body, headers=self.headers)
