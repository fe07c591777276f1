"""Cost of an aggregation for other clients: latency of GET /api/v1/campaigns while a large run is aggregated.

    python benchmarks/api_while_aggregating.py [--processes 8 --requests 1000 --tokens 1000] [--rounds 10]

Starts `lem-server` with a new database, uploads a run of 8 million token records through the workers' protocol, and
requests the list of campaigns repeatedly, in five alternating situations: idle; with two small requests, at the moments
when an aggregation's request would begin and end; with these and a busy process of an aggregation's priority; with the
run being aggregated; and with a run of 190,000 records being aggregated repeatedly. The figures are percentiles of each
and their ratios to idle. The second situation shows the cost of any request, the third adds that of any neighbour, the
fourth that of the aggregation.
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

from aggregate import Size, machine_facts, rank_tokens, store  # type: ignore[import-not-found]  # in this folder
from lem_domain.evidence.streams import CHUNK_MEDIA_TYPE
from lem_domain.ids import IdKind, format_id
from lem_domain.wire.base import BOOT_HEADER, PROTOCOL_HEADER, PROTOCOL_VERSION, WORKER_HEADER
from lem_server.aggregation.inputs import AggregationInput

_READY = re.compile(r"ready at (http://\S+) ")
LENGTH_S = 2.0
"""Duration of the situations without an aggregation; about that of one."""
SMALL = Size(1, 190, 1000)
"""Below `LARGE_ROWS` of the server, which aggregates such runs in a shared process, one after another."""
PAUSE_S = 0.005
"""Between two requests, so that the client itself is not the load."""


def main() -> None:
    """Generate the evidence, start a server, upload and measure."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--requests", type=int, default=1000, help="per process")
    parser.add_argument("--tokens", type=int, default=1000, help="per request")
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    size = Size(options.processes, options.requests, options.tokens)
    print(machine_facts())
    print(f"{size.processes} processes x {size.requests} requests x {size.tokens} tokens")
    with shared_folder() as folder, served(folder / "data") as url:
        large, small = generate(folder / "large", size), generate(folder / "small", SMALL)
        token = (folder / "data" / "owner.token").read_text().strip()
        asyncio.run(measure(url, token, large, small, options.rounds))


def generate(folder: Path, size: Size) -> Path:
    """Write the evidence of a run of this size."""
    folder.mkdir()
    store(folder, size, [rank_tokens(size, rank, interleaved=True) for rank in range(size.processes)])
    return folder


@contextlib.contextmanager
def shared_folder() -> Iterator[Path]:
    """A temporary folder; started by root, PostgreSQL runs as another user, which needs access."""
    folder = Path(tempfile.mkdtemp(prefix="lem-benchmark-"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def served(data: Path) -> Iterator[str]:
    """Run a server process on a free port; yield its URL."""
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
    """Measure the situations alternately, so that a busy machine affects all of them."""
    headers = {"Authorization": f"Bearer {token}"}
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=600) as api:
        run, small_run = await upload(api, large), await upload(api, small)
        await aggregate_run(api, run)
        names = ("idle", "two small requests", "and a busy process", "aggregating", "aggregating small runs")
        seconds: dict[str, list[float]] = {name: [] for name in names}
        lengths: list[float] = []
        small_lengths: list[float] = []
        for _ in range(rounds):
            seconds["idle"] += await request_while(api, asyncio.create_task(asyncio.sleep(LENGTH_S)))
            seconds["two small requests"] += await request_while(
                api, asyncio.create_task(send_two_small_requests(api, run))
            )
            with busy_process():
                seconds["and a busy process"] += await request_while(
                    api, asyncio.create_task(send_two_small_requests(api, run))
                )
            began = time.perf_counter()
            seconds["aggregating"] += await request_while(api, asyncio.create_task(aggregate_run(api, run)))
            lengths.append(time.perf_counter() - began)
            repeated = asyncio.create_task(aggregate_repeatedly(api, small_run, small_lengths))
            seconds["aggregating small runs"] += await request_while(api, repeated)
    shares = (50, 95, 99)
    idle = np.percentile(seconds["idle"], shares)
    for name, values in seconds.items():
        percentiles = ", ".join(
            f"p{share} {value * 1e3:.2f} ms ({value / base:.2f} of idle)"
            for share, value, base in zip(shares, np.percentile(values, shares), idle, strict=True)
        )
        print(f"  {name}: {len(values)} requests, {percentiles}, max {max(values) * 1e3:.1f} ms")
    print(f"  an aggregation took {np.median(lengths):.2f} s, one of a small run {np.median(small_lengths):.3f} s")


@contextlib.contextmanager
def busy_process() -> Iterator[None]:
    """Run an unrelated process that keeps one processor busy, with the priority of an aggregation."""
    busy = "from lem_server.aggregation.subprocess_setup import lower_priority as lower; lower()\nwhile True: pass"
    with subprocess.Popen([sys.executable, "-c", busy]) as process:
        try:
            yield
        finally:
            process.kill()


async def request_while(api: httpx.AsyncClient, task: asyncio.Task[None]) -> list[float]:
    """Send requests until the task is done; return the seconds of each."""
    seconds: list[float] = []
    while not task.done():
        began = time.perf_counter()
        answer = await api.get("/api/v1/campaigns")
        answer.raise_for_status()
        seconds.append(time.perf_counter() - began)
        await asyncio.sleep(PAUSE_S)
    await task
    return seconds


async def send_two_small_requests(api: httpx.AsyncClient, run: str) -> None:
    """Send one when an aggregation would begin, one when it would end."""
    (await api.get(f"/api/v1/runs/{run}")).raise_for_status()
    await asyncio.sleep(LENGTH_S)
    (await api.get(f"/api/v1/runs/{run}/aggregate")).raise_for_status()


async def aggregate_run(api: httpx.AsyncClient, run: str) -> None:
    """Aggregate a run; once it has a result, the server recomputes and compares it."""
    (await api.post(f"/api/v1/runs/{run}:aggregate")).raise_for_status()


async def aggregate_repeatedly(api: httpx.AsyncClient, run: str, seconds: list[float]) -> None:
    """Aggregate the run repeatedly for `LENGTH_S`; append the seconds of each to `seconds`."""
    end = time.perf_counter() + LENGTH_S
    while (began := time.perf_counter()) < end:
        await aggregate_run(api, run)
        seconds.append(time.perf_counter() - began)


async def upload(api: httpx.AsyncClient, evidence: Path) -> str:
    """Submit a campaign of one run, claim it and upload the evidence like a worker; return the run's id."""
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
            path = f"{attempt}/processes/{view.process}/streams/{view.stream.value}/chunks/{chunk.seq}"
            sent = {**headers, "Content-Type": CHUNK_MEDIA_TYPE, "Content-Digest": digest}
            (await api.put(path, content=body, headers=sent)).raise_for_status()
    for process in inputs.processes:
        streams = [one.model_dump(mode="json") for one in inputs.manifest if one.process == process]
        done = {"streams": streams, "summary": dict(inputs.summaries[process])}
        path = f"{attempt}/processes/{process}/completion"
        (await api.put(path, json=done, headers=headers)).raise_for_status()
    manifest = [one.model_dump(mode="json") for one in inputs.manifest]
    await post(f"{attempt}:complete", processes=list(inputs.processes), manifest=manifest)
    return str(assignment["run_id"])


if __name__ == "__main__":
    main()
