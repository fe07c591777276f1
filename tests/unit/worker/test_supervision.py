"""What is known of the power while the sampler lives, and after it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from lem_domain.config.measurement import LimitsConfig
from lem_domain.evidence.streams import SAMPLER, PhaseName
from lem_domain.wire.runs import Progress
from lem_worker.daemon.supervision import Supervision
from lem_worker.process.children import ProcessExit
from lem_worker.process.protocol import ControlMessage, FromProcess, PhaseEdge, PowerSlope, SamplingStarted, Tick

pytestmark = pytest.mark.anyio


class Process:
    """Says what the test puts into it; None is its end."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.pid = 0
        self.says: asyncio.Queue[FromProcess | None] = asyncio.Queue()
        self.told: list[ControlMessage] = []

    async def receive(self) -> FromProcess | None:
        message = await self.says.get()
        self.says.task_done()
        return message

    def send(self, message: ControlMessage) -> None:
        self.told.append(message)

    async def wait(self) -> ProcessExit:
        return ProcessExit(0)

    async def kill(self, grace_s: float) -> None:
        self.says.put_nowait(None)


async def test_the_power_of_a_sampler_that_died_is_not_reported_any_more(tmp_path: Path) -> None:
    progress: list[Progress] = []
    under_test = Supervision(LimitsConfig(), ("rank-0",), progress.append, log_dir=tmp_path)
    rank, sampler = Process("rank-0"), Process(SAMPLER)
    for process in (rank, sampler):
        under_test.follow(process)
    rank.says.put_nowait(PhaseEdge(phase=PhaseName.WARMUP, edge="begin", time_ns=0))
    sampler.says.put_nowait(SamplingStarted(sources=()))
    sampler.says.put_nowait(Tick(phase=PhaseName.MEASURE, power_w=300.0, power_slope=0.001))
    await under_test.until_sampling(sampler, required=True, grace_s=0)
    for process in (rank, sampler):
        await process.says.join()
    assert (progress[-1].power_w, under_test.sampler.power_w is not None) == (300.0, True)
    assert rank.told == [PowerSlope(slope=0.001)]
    sampler.says.put_nowait(None)
    assert await under_test.until_sampler_done() is None
    assert (progress[-1].power_w, under_test.sampler.power_w is not None) == (None, False)
    assert rank.told == [PowerSlope(slope=0.001), PowerSlope(slope=None)]
    await under_test.kill_all(0)
