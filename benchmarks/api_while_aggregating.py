"""What an aggregation costs everybody else: latency of GET /api/v1/campaigns while a large run is aggregated.

    python benchmarks/api_while_aggregating.py [--processes 8 --requests 1000 --tokens 1000] [--rounds 10]

Starts `lem-server` with a database of its own, gives it a run of 8 million token records through the protocol that
workers use, and asks for the list of campaigns over and over, in turn: with nothing else to do; with two small requests
besides, at the moments when an aggregation's request begins and ends; with these and a process that counts for nothing
at an aggregation's priority; with the run being aggregated; and with a run of 190,000 records being aggregated over
and over. The figures are percentiles of each and their ratios to the first. What the second costs is any request's,
what the third adds any neighbour's, the next step the aggregation's.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import hashlib
import os
import pickle
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import httpx
import numpy as np

from aggregate import Size, machine_facts, rank_tokens, store  # type: ignore[import-not-found]  # beside this script
from lem_domain.evidence.streams import CHUNK_MEDIA_TYPE
from lem_domain.ids import IdKind, format_id
from lem_domain.wire.base import BOOT_HEADER, PROTOCOL_HEADER, PROTOCOL_VERSION, WORKER_HEADER
from lem_server.aggregation.inputs import AggregationInput
from lem_server.aggregation.priority import let_others_go_first

_READY = re.compile(r"ready at (http://\S+) ")
LENGTH_S = 2.0
"""Of what is compared with an aggregation; about as long as one takes."""
SMALL = Size(1, 190, 1000)
"""Below `LARGE_ROWS` of the server, whose processes serve such runs one after another."""
PAUSE_S = 0.005
"""Between two questions, so that the one who asks is not the load."""


def main() -> None:
    """Make the evidence, serve, load, measure, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--requests", type=int, default=1000, help="per process")
    parser.add_argument("--tokens", type=int, default=1000, help="per request")
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    size = Size(options.processes, options.requests, options.tokens)
    print(machine_facts())
    print(f"{size.processes} processes x {size.requests} requests x {size.tokens} tokens")
    with folder_for_everybody() as folder, served(folder / "data") as url:
        large, small = made(folder / "large", size), made(folder / "small", SMALL)
        token = (folder / "data" / "owner.token").read_text().strip()
        asyncio.run(measure(url, token, large, small, options.rounds))


def made(folder: Path, size: Size) -> Path:
    """The evidence of a run of that size."""
    folder.mkdir()
    store(folder, size, [rank_tokens(size, rank, interleaved=True) for rank in range(size.processes)])
    return folder


@contextlib.contextmanager
def folder_for_everybody() -> Iterator[Path]:
    """A folder that is gone afterwards; as root, PostgreSQL runs as another user who must reach it."""
    folder = Path(tempfile.mkdtemp(prefix="lem-benchmark-"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def served(data: Path) -> Iterator[str]:
    """A server process on a free port; its address."""
    command = [str(Path(sys.executable).parent / "lem-server"), "serve", "--port", "0", "--data-dir", str(data)]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("LEM_")}
    with (data.parent / "server.log").open("wb") as log:
        server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=kept)
    try:
        assert server.stdout is not None
        found = _READY.search(server.stdout.readline())
        if found is None:
            raise RuntimeError((data.parent / "server.log").read_text())
        yield found[1]
    finally:
        server.terminate()
        server.wait(60)


async def measure(url: str, token: str, large: Path, small: Path, rounds: int) -> None:
    """Ask with and without an aggregation in progress, in turn."""
    headers = {"Authorization": f"Bearer {token}"}
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=600) as api:
        run, small_run = await upload(api, large), await upload(api, small)
        await aggregated(api, run)
        names = ("idle", "two small requests", "and a busy process", "aggregating", "aggregating small runs")
        seconds: dict[str, list[float]] = {name: [] for name in names}
        lengths: list[float] = []
        small_lengths: list[float] = []
        for _ in range(rounds):
            seconds["idle"] += await ask_while(api, asyncio.create_task(asyncio.sleep(LENGTH_S)))
            seconds["two small requests"] += await ask_while(api, asyncio.create_task(two_small_requests(api, run)))
            with busy_process():
                seconds["and a busy process"] += await ask_while(api, asyncio.create_task(two_small_requests(api, run)))
            began = time.perf_counter()
            seconds["aggregating"] += await ask_while(api, asyncio.create_task(aggregated(api, run)))
            lengths.append(time.perf_counter() - began)
            again = asyncio.create_task(one_after_another(api, small_run, small_lengths))
            seconds["aggregating small runs"] += await ask_while(api, again)
    shares = (50, 95, 99)
    idle = np.percentile(seconds["idle"], shares)
    for name, values in seconds.items():
        told = ", ".join(
            f"p{share} {value * 1e3:.2f} ms ({value / base:.2f} of idle)"
            for share, value, base in zip(shares, np.percentile(values, shares), idle, strict=True)
        )
        print(f"  {name}: {len(values)} requests, {told}, max {max(values) * 1e3:.1f} ms")
    print(f"  an aggregation took {np.median(lengths):.2f} s, one of a small run {np.median(small_lengths):.3f} s")


@contextlib.contextmanager
def busy_process() -> Iterator[None]:
    """A process that has nothing to do with the server and wants one processor, with the priority of an aggregation."""
    with subprocess.Popen([sys.executable, "-c", "while True: pass"], start_new_session=True) as process:
        let_others_go_first(process.pid)
        try:
            yield
        finally:
            process.kill()


async def ask_while(api: httpx.AsyncClient, task: asyncio.Task[None]) -> list[float]:
    """Seconds of each question until the task is done."""
    seconds: list[float] = []
    while not task.done():
        began = time.perf_counter()
        answer = await api.get("/api/v1/campaigns")
        answer.raise_for_status()
        seconds.append(time.perf_counter() - began)
        await asyncio.sleep(PAUSE_S)
    await task
    return seconds


async def two_small_requests(api: httpx.AsyncClient, run: str) -> None:
    """One when an aggregation would begin, one when it would end."""
    (await api.get(f"/api/v1/runs/{run}")).raise_for_status()
    await asyncio.sleep(LENGTH_S)
    (await api.get(f"/api/v1/runs/{run}/aggregate")).raise_for_status()


async def aggregated(api: httpx.AsyncClient, run: str) -> None:
    """Aggregate once more; every digest is checked and the result compared with the stored one."""
    (await api.post(f"/api/v1/runs/{run}:aggregate")).raise_for_status()


async def one_after_another(api: httpx.AsyncClient, run: str, seconds: list[float]) -> None:
    """Aggregate the run over and over for `LENGTH_S`; `seconds` gets how long each took."""
    end = time.perf_counter() + LENGTH_S
    while (began := time.perf_counter()) < end:
        await aggregated(api, run)
        seconds.append(time.perf_counter() - began)


async def upload(api: httpx.AsyncClient, evidence: Path) -> str:
    """Submit a campaign of one run, claim it and send the evidence as a worker would; the answer is the run."""
    inputs: AggregationInput = pickle.loads((evidence / "inputs").read_bytes())
    ranks = len(inputs.ranks)
    experiment = {"backend": "simulated", "model": "benchmark", "simulated": {"num_processes": ranks}}
    submitted = await api.post("/api/v1/campaigns", json={"name": "benchmark", "experiment": experiment})
    submitted.raise_for_status()
    worker, boot = format_id(IdKind.WORKER, uuid4()), str(uuid4())
    headers = {WORKER_HEADER: worker, BOOT_HEADER: boot, PROTOCOL_HEADER: str(PROTOCOL_VERSION)}

    async def post(path: str, **body: object) -> httpx.Response:
        return (await api.post(path, json=body, headers=headers)).raise_for_status()

    devices = [device.model_dump(mode="json") for device in inputs.devices]
    await post(
        "/api/v1/workers",
        id=worker,
        boot_id=boot,
        name="benchmark",
        host="localhost",
        backend="simulated",
        devices=devices,
    )
    claim = {"claim_id": str(uuid4()), "boot_id": boot, "devices": [one["uuid"] for one in devices], "wait_s": 0}
    assignment = (await post(f"/api/v1/workers/{worker}/claims", **claim)).json()
    attempt = f"/api/v1/attempts/{assignment['attempt_id']}"
    await post(f"{attempt}:start", environment={}, effective_config={"engine": "benchmark", "parameters": []})
    for view in inputs.held:
        for chunk in view.chunks:
            body = (evidence / f"{view.process}.{view.stream.value}.{chunk.seq}").read_bytes()
            digest = f"sha-256=:{base64.b64encode(hashlib.sha256(body).digest()).decode()}:"
            place = f"{attempt}/processes/{view.process}/streams/{view.stream.value}/chunks/{chunk.seq}"
            sent = {**headers, "Content-Type": CHUNK_MEDIA_TYPE, "Content-Digest": digest}
            (await api.put(place, content=body, headers=sent)).raise_for_status()
    for process in inputs.processes:
        streams = [one.model_dump(mode="json") for one in inputs.manifest if one.process == process]
        done = {"streams": streams, "summary": dict(inputs.summaries[process])}
        place = f"{attempt}/processes/{process}/completion"
        (await api.put(place, json=done, headers=headers)).raise_for_status()
    manifest = [one.model_dump(mode="json") for one in inputs.manifest]
    await post(f"{attempt}:complete", processes=list(inputs.processes), manifest=manifest)
    return str(assignment["run_id"])


if __name__ == "__main__":
    main()
