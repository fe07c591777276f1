"""The idle baseline of a worker: measured once, then reused with its age and origin, and never called so when new."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from factories.fake_daemon import FAKES
from factories.fake_server import FakeServer
from lem_domain.evidence.codec import decode_chunk
from lem_domain.evidence.streams import SAMPLER, StreamName
from lem_worker.daemon.process_start import ProcessModules

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("worker_environment")]


def sampled(server: FakeServer, attempt: str, stream: StreamName) -> list[dict[str, Any]]:
    """What the sampler of an attempt wrote."""
    bodies = [
        body
        for (owner, process, name, _), body in sorted(server.chunks.items())
        if (owner, process, name) == (attempt, SAMPLER, stream.value)
    ]
    return [row for body in bodies for row in decode_chunk(stream, body).to_pylist()]


async def test_the_second_run_of_a_worker_uses_the_idle_baseline_of_the_first_and_says_so(
    server: FakeServer, work: Callable[..., Coroutine[Any, Any, None]]
) -> None:
    first, second = (server.enqueue(baseline={"min_s": 3, "max_s": 60}) for _ in range(2))
    await work(modules=FAKES._replace(sampler=ProcessModules().sampler))
    assert {first, second} <= set(server.completed)
    contexts = {
        attempt: [
            json.loads(row["detail"])["context"]
            for row in sampled(server, attempt, StreamName.PHASES)
            if (row["phase"], row["edge"]) == ("baseline", "end")
        ]
        for attempt in (first, second)
    }
    assert contexts == {first: ["idle", "ready", "ready_after"], second: ["ready", "ready_after"]}
    reused = {
        attempt: [
            json.loads(row["detail"])
            for row in sampled(server, attempt, StreamName.EVENTS)
            if row["kind"] == "baseline_reused"
        ]
        for attempt in (first, second)
    }
    assert reused[first] == []
    (kept,) = reused[second]
    assert (kept["context"], kept["taken_by"]) == ("idle", first)
    # It is as old as what came after it in the first run: both of that run's other baselines, at least.
    assert kept["age_s"] >= 6
