"""The user under chaos: submits short campaigns, pauses, resumes and cancels some, and repeats what is not answered."""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import httpx

from chaos.world import World
from lem_domain.ids import IdKind, parse_id

OUTSTANDING_RUNS = 6
"""So many runs wait or are live at a time; more would only lengthen the end."""
ANSWERED_WITHIN_S = 120.0


@dataclass
class Submitted:
    """A campaign, and what its user was told about it."""

    id: UUID
    name: str
    runs: int
    cancelled_at: datetime | None = None
    """When the answer to its cancel was there: nothing of it may be claimed later."""
    paused: list[tuple[datetime, datetime]] = field(default_factory=list)
    """From the answer to a pause until its resumption was asked for: nothing of it may be claimed in between."""


class Unanswered(Exception):
    """A request got no usable answer for minutes, or one that it must not get."""


class User:
    """Talks to the servers over a wire that breaks."""

    def __init__(self, world: World, generator: random.Random) -> None:
        assert world.user_wire is not None
        token = world.servers[0].token_file.read_text().strip()
        self._random = generator
        self._api = httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{world.user_wire.port}",
            headers={"Authorization": f"Bearer {token}"},
            timeout=20,
            trust_env=False,
        )
        self.campaigns: list[Submitted] = []
        self.wrong_answers: list[str] = []
        """Answers that nobody should get, whatever breaks."""

    async def close(self) -> None:
        """Close the connections."""
        await self._api.aclose()

    async def live(self, stop: asyncio.Event) -> None:
        """Use the system until told to stop; whatever is paused then is resumed."""
        while not stop.is_set():
            try:
                await self._act(stop)
            except Unanswered as what:
                self.wrong_answers.append(str(what))
            await _wait(stop, self._random.uniform(0.5, 2.0))

    async def _act(self, stop: asyncio.Event) -> None:
        if await self._outstanding() < OUTSTANDING_RUNS:
            await self.submit()
        choice = self._random.random()
        if self.campaigns and choice < 0.12:
            await self.cancel(self._random.choice(self.campaigns[-3:]))
        elif self.campaigns and choice < 0.3:
            await self.pause_for_a_while(self._random.choice(self.campaigns[-3:]), stop)

    async def submit(self) -> Submitted:
        """Submit a campaign, again and again under the same key until that is answered."""
        body, runs = self._campaign(len(self.campaigns))
        answer = await self.ask("POST", "/campaigns", body, {"Idempotency-Key": uuid4().hex})
        made = Submitted(parse_id(IdKind.CAMPAIGN, answer["id"]), body["name"], runs)
        self.campaigns.append(made)
        return made

    async def cancel(self, campaign: Submitted) -> None:
        """Cancel it."""
        if campaign.cancelled_at is None:
            await self.ask("POST", f"/campaigns/cmp_{campaign.id.hex}:cancel")
            campaign.cancelled_at = _now()

    async def pause_for_a_while(self, campaign: Submitted, stop: asyncio.Event) -> None:
        """Pause it, letting live runs finish or not, and resume it."""
        if campaign.cancelled_at is not None:
            return
        place = f"/campaigns/cmp_{campaign.id.hex}"
        await self.ask("POST", f"{place}:pause", {"live_runs": self._random.choice(["finish", "stop"])})
        begin = _now()
        await _wait(stop, self._random.uniform(1, 5))
        campaign.paused.append((begin, _now()))
        await self.ask("POST", f"{place}:resume")

    async def ask(
        self, method: str, path: str, body: dict[str, Any] | None = None, headers: dict[str, str] | None = None
    ) -> dict[str, Any]:
        """Send until it is answered; connection faults, 429 and 503 are what may happen, anything else is not."""
        deadline = time.monotonic() + ANSWERED_WITHIN_S
        last = ""
        while time.monotonic() < deadline:
            try:
                answer = await self._api.request(method, f"/api/v1{path}", json=body, headers=headers)
            except httpx.TransportError as error:
                last = repr(error)
            else:
                if answer.is_success:
                    found: dict[str, Any] = answer.json()
                    return found
                last = f"{answer.status_code} {answer.text[:300]}"
                if answer.status_code not in (429, 503):
                    break
            await asyncio.sleep(self._random.uniform(0.1, 0.6))
        raise Unanswered(f"{method} {path} got {last}")

    async def _outstanding(self) -> int:
        total = 0
        for state in ("queued", "initialised", "running"):
            total += len((await self.ask("GET", f"/runs?state={state}&limit=100"))["items"])
        return total

    def _campaign(self, number: int) -> tuple[dict[str, Any], int]:
        draw = self._random
        name = f"chaos-{number}"
        cycles = draw.randint(1, 3)
        experiment: dict[str, Any] = {
            "backend": "simulated",
            "model": "m",
            "prompts": {"sample_size": draw.choice([2, 4])},
            "output": {"max_tokens": draw.choice([4, 16])},
            "window": {"min_duration_s": draw.choice([0.5, 2, 4])},
            "warmup": {"max_requests": 5, "power_slope": None},
            "baseline": draw.choice([{"enabled": False}, {"min_s": 1, "max_s": 1}]),
            "limits": {"silence_s": 30, "load_s": 60, "warmup_s": 60, "run_s": 120},
            "simulated": {"num_processes": draw.choice([1, 1, 1, 2])},
        }
        if draw.random() < 0.1:
            experiment["simulated"]["fail"] = {"at": draw.choice(["load", "measure"]), "how": "raise"}
        return {
            "name": name,
            "experiment": experiment,
            "execution": {
                "cycles": cycles,
                "retries": draw.choice([0, 2]),
                "placement": draw.choice(["any", "same_model"]),
            },
        }, cycles


def _now() -> datetime:
    return datetime.now(UTC)


async def _wait(stop: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await stop.wait()
    except TimeoutError:
        return
