"""A stand-in for the LEM server as a worker sees it: the real wire models over real HTTP, and faults on order."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import re
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from lem_domain.config.experiment import ExperimentConfig
from lem_domain.evidence.codec import decode_chunk
from lem_domain.evidence.streams import CHUNK_MEDIA_TYPE, StreamManifest, StreamName, digest_of_digests
from lem_domain.wire.base import BOOT_HEADER
from lem_domain.wire.workers import (
    ClaimRequest,
    CompleteAttempt,
    EndAttempt,
    Heartbeat,
    LogText,
    ProcessCompletion,
    RegisterWorker,
    StartAttempt,
)
from lem_worker.process.children import ATTEMPT_VARIABLE

QUICK: dict[str, Any] = {
    "backend": "simulated",
    "model": "m",
    "prompts": {"sample_size": 4},
    "baseline": {"enabled": False},
}

Answer = Callable[[], Response]


class Call(NamedTuple):
    """One request that the server got, whatever it answered."""

    method: str
    path: str
    boot: str


@dataclass
class Fault:
    """An answer in place of the right one."""

    pattern: re.Pattern[str]
    answer: Answer
    left: int


def problem(status: int, code: str, **more: Any) -> Response:
    """An RFC 9457 answer."""
    body = {"type": f"/problems/{code}", "title": code, "status": status, "code": code, "detail": f"it is {code}."}
    return JSONResponse({**body, **more}, status, media_type="application/problem+json")


def processes_of(attempt: str) -> list[int]:
    """Living processes that bear an attempt's name."""
    name = f"{ATTEMPT_VARIABLE}={attempt}".encode()
    living = []
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if folder.name.isdigit() and name in (folder / "environ").read_bytes().split(b"\0"):
                living.append(int(folder.name))
    return living


@dataclass
class FakeServer:
    """What the worker told it, and what it is to answer."""

    lease_s: float = 60.0
    beat_interval_s: float = 0.05
    queue: deque[dict[str, Any]] = field(default_factory=deque)
    verdict: str = "ok"
    drain: bool = False
    hold_claims: bool = False
    gaps: int = 0
    """So many claims are told that a run has to wait, before there is one."""
    calls: list[Call] = field(default_factory=list)
    registered: list[RegisterWorker] = field(default_factory=list)
    claims: list[ClaimRequest] = field(default_factory=list)
    beats: list[Heartbeat] = field(default_factory=list)
    started: dict[str, StartAttempt] = field(default_factory=dict)
    chunks: dict[tuple[str, str, str, int], bytes] = field(default_factory=dict)
    logs: dict[tuple[str, str, int], str] = field(default_factory=dict)
    markers: dict[tuple[str, str], ProcessCompletion] = field(default_factory=dict)
    completed: dict[str, CompleteAttempt] = field(default_factory=dict)
    ended: dict[str, EndAttempt] = field(default_factory=dict)
    datasets: dict[str, tuple[str, ...]] = field(default_factory=dict)
    processes_at_the_end: dict[str, list[int]] = field(default_factory=dict)
    """Processes of attempts that lived when their end was told; there must be none."""
    others: list[dict[str, Any]] = field(default_factory=list)
    """Workers that it lists."""
    url: str = ""

    def __post_init__(self) -> None:
        self._faults: list[Fault] = []
        self._events = threading.Condition()
        attempt = "/api/v1/attempts/{attempt}"
        process = attempt + "/processes/{process}"
        self._routes = Starlette(
            routes=[
                Route("/api/v1/datasets/{sha256}", self._dataset, methods=["GET"]),
                Route("/api/v1/workers", self._register, methods=["POST"]),
                Route("/api/v1/workers", self._list_workers, methods=["GET"]),
                Route("/api/v1/workers/{worker}/claims", self._claim, methods=["POST"]),
                Route("/api/v1/workers/{worker}/heartbeat", self._beat, methods=["POST"]),
                Route("/api/v1/workers/{worker}:sign_off", self._sign_off, methods=["POST"]),
                Route(attempt + ":start", self._start, methods=["POST"]),
                Route(attempt + ":complete", self._complete, methods=["POST"]),
                Route(attempt + ":end", self._end, methods=["POST"]),
                Route(process + "/streams/{stream}/chunks/{seq:int}", self._put_chunk, methods=["PUT"]),
                Route(process + "/logs/{seq:int}", self._put_log, methods=["PUT"]),
                Route(process + "/completion", self._put_completion, methods=["PUT"]),
            ]
        )

    # --- for tests ----------------------------------------------------------------------------------------------------

    def enqueue(self, **config: Any) -> str:
        """A run to hand out; the answer is the attempt's id."""
        attempt = f"att_{uuid4().hex}"
        parsed = ExperimentConfig.model_validate({**QUICK, **config})
        self.queue.append({"attempt_id": attempt, "config": parsed.model_dump(mode="json")})
        return attempt

    def fail(self, pattern: str, answer: Answer, times: int = 1_000_000) -> None:
        """Answer so to the next requests whose "METHOD path" matches."""
        self._faults.append(Fault(re.compile(pattern), answer, times))

    def heal(self) -> None:
        """No more faults."""
        self._faults.clear()

    def wait_until(self, met: Callable[[], bool]) -> None:
        """Return when a request made it so; blocks, so call it in a thread."""
        with self._events:
            assert self._events.wait_for(met, timeout=600), self.calls[-20:]

    def paths(self, pattern: str) -> list[str]:
        """The "METHOD path" of matching calls, in order."""
        told = [f"{call.method} {call.path}" for call in self.calls]
        return [one for one in told if re.search(pattern, one)]

    def rows(self, attempt: str, process: str, stream: StreamName) -> list[dict[str, Any]]:
        """All rows of a stream that arrived, in their order."""
        bodies = [self.chunks[key] for key in sorted(self.chunks) if key[:3] == (attempt, process, stream.value)]
        return [row for body in bodies for row in decode_chunk(stream, body).to_pylist()]

    def log_of(self, attempt: str, process: str) -> str:
        """A process's output."""
        pieces = {seq: text for (a, p, seq), text in self.logs.items() if (a, p) == (attempt, process)}
        assert sorted(pieces) == list(range(len(pieces)))
        return "".join(pieces[seq] for seq in sorted(pieces))

    def __enter__(self) -> FakeServer:
        config = uvicorn.Config(self, host="127.0.0.1", port=0, log_level="warning", lifespan="off", loop="asyncio")
        self._uvicorn = uvicorn.Server(config)
        up = threading.Event()
        startup = self._uvicorn.startup

        async def told_startup(sockets: Any = None) -> None:
            await startup(sockets)
            up.set()

        self._uvicorn.startup = told_startup  # type: ignore[method-assign]
        self._thread = threading.Thread(target=self._uvicorn.run, daemon=True)
        self._thread.start()
        assert up.wait(300)
        self.url = f"http://127.0.0.1:{self._uvicorn.servers[0].sockets[0].getsockname()[1]}"
        return self

    def __exit__(self, *_: object) -> None:
        self._uvicorn.force_exit = self._uvicorn.should_exit = True
        self._thread.join()
        assert self.processes_at_the_end == {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        name = f"{request.method} {request.url.path}"

        async def noting(message: Message) -> None:
            # Before the worker can see the answer, so that a test that saw the worker act on it finds the call.
            if message["type"] == "http.response.start":
                with self._events:
                    self.calls.append(Call(request.method, request.url.path, request.headers.get(BOOT_HEADER, "")))
                    self._events.notify_all()
            await send(message)

        fault = next((one for one in self._faults if one.left > 0 and one.pattern.search(name)), None)
        if fault is not None:
            fault.left -= 1
            await request.body()
            await fault.answer()(scope, receive, noting)
        else:
            await self._routes(scope, receive, noting)

    # --- endpoints ----------------------------------------------------------------------------------------------------

    async def _dataset(self, request: Request) -> Response:
        sha256 = request.path_params["sha256"]
        if sha256 not in self.datasets:
            return problem(404, "not_found")
        texts = self.datasets[sha256]
        return JSONResponse({"sha256": sha256, "name": "d", "builtin": False, "prompts": len(texts), "texts": texts})

    async def _register(self, request: Request) -> Response:
        self.registered.append(RegisterWorker.model_validate_json(await request.body()))
        return JSONResponse(
            {
                "id": self.registered[-1].id,
                "beat_interval_s": self.beat_interval_s,
                "lease_ttl_s": self.lease_s,
            }
        )

    async def _list_workers(self, request: Request) -> Response:
        return JSONResponse({"items": self.others, "next": None})

    async def _claim(self, request: Request) -> Response:
        claim = ClaimRequest.model_validate_json(await request.body())
        self.claims.append(claim)
        while self.hold_claims and not await request.is_disconnected():  # noqa: ASYNC110 - another thread ends it
            await asyncio.sleep(0.01)
        if self.gaps:
            self.gaps -= 1
            return Response(status_code=204, headers={"Retry-After": "1"})
        if not self.queue:
            return Response(status_code=204)
        run = self.queue.popleft()
        count = ExperimentConfig.model_validate(run["config"]).devices.count
        return JSONResponse(
            {
                **run,
                "run_id": f"run_{uuid4().hex}",
                "campaign_id": f"cmp_{uuid4().hex}",
                "display_name": "fake",
                "cycle": 1,
                "number": 1,
                "config_hash": "0" * 64,
                "devices": claim.devices[:count],
                "lease_s": self.lease_s,
                "beat_interval_s": self.beat_interval_s,
            }
        )

    async def _beat(self, request: Request) -> Response:
        beat = Heartbeat.model_validate_json(await request.body())
        self.beats.append(beat)
        lease_s = None if self.verdict == "lost" else self.lease_s
        verdicts = [
            {"attempt_id": one.attempt_id, "verdict": self.verdict, "lease_s": lease_s} for one in beat.attempts
        ]
        return JSONResponse({"attempts": verdicts, "next_beat_s": self.beat_interval_s, "drain": self.drain})

    async def _sign_off(self, request: Request) -> Response:
        return Response(status_code=204)

    async def _start(self, request: Request) -> Response:
        self.started[request.path_params["attempt"]] = StartAttempt.model_validate_json(await request.body())
        return self._view(request, None)

    async def _put_chunk(self, request: Request) -> Response:
        body = await request.body()
        at = request.path_params
        digest = base64.b64encode(hashlib.sha256(body).digest()).decode()
        assert request.headers["content-type"] == CHUNK_MEDIA_TYPE
        assert request.headers["content-digest"] == f"sha-256=:{digest}:"
        decode_chunk(StreamName(at["stream"]), body)
        return self._store(self.chunks, (at["attempt"], at["process"], at["stream"], at["seq"]), body)

    async def _put_log(self, request: Request) -> Response:
        at = request.path_params
        text = LogText.model_validate_json(await request.body()).text
        return self._store(self.logs, (at["attempt"], at["process"], at["seq"]), text)

    async def _put_completion(self, request: Request) -> Response:
        at = request.path_params
        marker = ProcessCompletion.model_validate_json(await request.body())
        return self._store(self.markers, (at["attempt"], at["process"]), marker)

    async def _complete(self, request: Request) -> Response:
        attempt = request.path_params["attempt"]
        self._look_for_processes(attempt)
        body = CompleteAttempt.model_validate_json(await request.body())
        if missing := self._missing(attempt, body):
            return problem(409, "manifest_incomplete", missing=missing)
        assert sorted(body.manifest, key=str) == sorted(self._manifest(attempt), key=str)
        assert all((attempt, process) in self.markers for process in body.processes)
        self.completed[attempt] = body
        return self._view(request, "completed")

    async def _end(self, request: Request) -> Response:
        self._look_for_processes(request.path_params["attempt"])
        body = EndAttempt.model_validate_json(await request.body())
        self.ended[request.path_params["attempt"]] = body
        return self._view(request, body.outcome)

    def _look_for_processes(self, attempt: str) -> None:
        if living := processes_of(attempt):
            self.processes_at_the_end[attempt] = living

    def _missing(self, attempt: str, body: CompleteAttempt) -> list[dict[str, Any]]:
        gaps = []
        for one in body.manifest:
            held = {seq for (*at, seq) in self.chunks if at == [attempt, one.process, one.stream.value]}
            if seqs := sorted(set(range(one.chunks)) - held):
                gaps.append({"process": one.process, "stream": one.stream.value, "seqs": seqs})
        return gaps

    def _manifest(self, attempt: str) -> list[StreamManifest]:
        streams: dict[tuple[str, str], list[bytes]] = {}
        for (owner, process, stream, _), body in sorted(self.chunks.items()):
            if owner == attempt:
                streams.setdefault((process, stream), []).append(body)
        return [
            StreamManifest(
                process=process,
                stream=StreamName(stream),
                chunks=len(bodies),
                rows=sum(decode_chunk(StreamName(stream), body).num_rows for body in bodies),
                bytes=sum(map(len, bodies)),
                sha256=digest_of_digests(hashlib.sha256(body).hexdigest() for body in bodies),
            )
            for (process, stream), bodies in streams.items()
        ]

    @staticmethod
    def _store(held: dict[Any, Any], key: object, value: object) -> Response:
        if held.setdefault(key, value) != value:
            return problem(409, "chunk_conflict")
        return JSONResponse({}, 201)

    @staticmethod
    def _view(request: Request, outcome: str | None) -> Response:
        return JSONResponse(
            {
                "id": request.path_params["attempt"],
                "run_id": f"run_{'0' * 32}",
                "number": 1,
                "worker_id": f"wrk_{'0' * 32}",
                "worker_name": "w",
                "devices": [],
                "claimed_at": "2026-01-01T00:00:00Z",
                "started_at": None,
                "ended_at": None,
                "outcome": outcome,
                "reason": None,
                "message": None,
                "environment": None,
                "effective_config": None,
                "manifest": None,
            }
        )
