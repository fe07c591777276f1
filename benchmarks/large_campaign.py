"""Cost of a large campaign: submitting, listing, watching, claiming from it and cancelling it.

    python benchmarks/large_campaign.py [--runs 10000 100000] [--cycles 10 1] [--rounds 20]

Starts `lem-server` with a new database, submits a campaign of ten runs and then the large ones, each with one request:
many cycles of fewer experiments, and experiments that are all distinct. It repeats the same requests for each. The
figures are medians with their ratio to the campaign of ten runs, and the longest time in which the server answered
another request while the campaign was submitted.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import uuid4

import httpx

from aggregate import machine_facts  # type: ignore[import-not-found]  # in this folder
from api_while_aggregating import served, shared_folder  # type: ignore[import-not-found]
from lem_domain.ids import IdKind, format_id
from lem_domain.wire.base import BOOT_HEADER, PROTOCOL_HEADER, PROTOCOL_VERSION, WORKER_HEADER

FEW = 10


def main() -> None:
    """Start a server and measure campaigns of every size."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--cycles", type=int, nargs="+", default=[10, 1])
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    print(machine_facts())
    with shared_folder() as folder, served(folder / "data") as url:
        token = (folder / "data" / "owner.token").read_text().strip()
        asyncio.run(measure(url, token, [(runs, n) for runs in options.runs for n in options.cycles], options.rounds))


async def measure(url: str, token: str, sizes: list[tuple[int, int]], rounds: int) -> None:
    """Measure one campaign after another, first the small one as the reference of the others."""
    async with httpx.AsyncClient(base_url=url, headers={"Authorization": f"Bearer {token}"}, timeout=600) as api:
        worker = await Worker(api).ready()
        small: dict[str, float] = {}
        for runs, cycles in ((FEW, 1), *sizes):
            found = await figures(api, worker, runs, cycles, rounds)
            small = small or found
            print(f"{runs} runs: {runs // cycles} experiments, {cycles} cycles")
            for name, seconds in found.items():
                print(f"  {name:<28} {seconds * 1e3:9.1f} ms   {seconds / small[name]:8.2f} times the {FEW} runs")


async def figures(api: httpx.AsyncClient, worker: Worker, runs: int, cycles: int, rounds: int) -> dict[str, float]:
    """Seconds of each request about a campaign with this number of runs."""
    body = {
        "name": f"{runs} runs, {cycles} cycles",
        "experiment": {"backend": "simulated", "model": "benchmark"},
        "sweep": {"decoding.seed": list(range(runs // cycles))},
        "execution": {"cycles": cycles, "order": "shuffled", "placement": "any"},
    }
    began = time.perf_counter()
    submitting = asyncio.create_task(api.post("/api/v1/campaigns", json=body))
    others = [await seconds(lambda: api.get("/api/v1/campaigns"))]
    while not submitting.done():
        others.append(await seconds(lambda: api.get("/api/v1/campaigns")))
        await asyncio.sleep(0.05)
    answer = (await submitting).raise_for_status()
    found = {"submit": time.perf_counter() - began, "longest list meanwhile": max(others)}
    campaign = answer.json()["id"]
    middle = (await api.get("/api/v1/runs", params={"campaign_id": campaign, "limit": 1})).json()
    asked: dict[str, Callable[[], Awaitable[object]]] = {
        "list of campaigns": lambda: api.get("/api/v1/campaigns"),
        "campaign": lambda: api.get(f"/api/v1/campaigns/{campaign}"),
        "page of 100 runs": lambda: api.get("/api/v1/runs", params={"campaign_id": campaign, "cursor": middle["next"]}),
        "page of 100 queued runs": lambda: api.get("/api/v1/runs", params={"campaign_id": campaign, "state": "queued"}),
        "first event of watching": lambda: first_event(api, campaign),
        "claim": worker.claim,
        "claim and end": worker.turn,
    }
    for name, ask in asked.items():
        found[name] = await median(ask, min(rounds, FEW // 3) if name.startswith("claim") else rounds)
    began = time.perf_counter()
    (await api.post(f"/api/v1/campaigns/{campaign}:cancel")).raise_for_status()
    found["cancel"] = time.perf_counter() - began
    return found


async def median(ask: Callable[[], Awaitable[object]], rounds: int) -> float:
    """Median duration of a call in s."""
    return statistics.median([await seconds(ask) for _ in range(rounds)])


async def seconds(ask: Callable[[], Awaitable[object]]) -> float:
    """Duration of a call in s; a response must be a success."""
    began = time.perf_counter()
    answer = await ask()
    took = time.perf_counter() - began
    if isinstance(answer, httpx.Response):
        answer.raise_for_status()
    return took


async def first_event(api: httpx.AsyncClient, campaign: str) -> None:
    """Open the event stream and close it after the first event."""
    async with api.stream("GET", f"/api/v1/campaigns/{campaign}/events") as events:
        async for line in events.aiter_lines():
            if line.startswith("data:"):
                return


class Worker:
    """A worker with enough devices for every claim."""

    def __init__(self, api: httpx.AsyncClient) -> None:
        self._api = api
        self._id = format_id(IdKind.WORKER, uuid4())
        self._boot = str(uuid4())
        self._devices = [f"SIM-{number}" for number in range(64)]

    async def ready(self) -> Worker:
        """Register."""
        devices = [{"uuid": uuid, "kind": "simulated", "name": "benchmark"} for uuid in self._devices]
        about = {"id": self._id, "name": "benchmark", "host": "localhost", "backend": "simulated", "devices": devices}
        await self._post("/api/v1/workers", boot_id=self._boot, **about)
        return self

    async def claim(self) -> httpx.Response:
        """Claim a run and hold it."""
        return await self._post(
            f"/api/v1/workers/{self._id}/claims",
            claim_id=str(uuid4()),
            boot_id=self._boot,
            devices=self._devices,
            wait_s=0,
        )

    async def turn(self) -> httpx.Response:
        """Claim a run and fail it."""
        attempt = (await self.claim()).json()["attempt_id"]
        return await self._post(
            f"/api/v1/attempts/{attempt}:end", outcome="failed", reason="inference", message="for the benchmark"
        )

    async def _post(self, path: str, **body: Any) -> httpx.Response:
        headers = {WORKER_HEADER: self._id, BOOT_HEADER: self._boot, PROTOCOL_HEADER: str(PROTOCOL_VERSION)}
        return (await self._api.post(path, json=body, headers=headers)).raise_for_status()


if __name__ == "__main__":
    main()
