"""Data parallel PyTorch: real ranks through the real `accelerate launch`, counted, divided, and killed as a whole."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import psutil
import pytest

from factories.fake_daemon import FAKES, nothing_lives_of, until
from factories.fake_server import FakeServer
from lem_domain.evidence.streams import StreamName
from lem_domain.states import FailureReason
from lem_worker.daemon import rank_launch as launch
from lem_worker.process.children import ATTEMPT_VARIABLE

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("worker_environment")]

Work = Callable[..., Coroutine[Any, Any, None]]

REAL_RANK = FAKES._replace(rank="lem_worker.rank.main")


def two_processes(model_folder: Path, **config: Any) -> dict[str, Any]:
    return {
        "backend": "pytorch",
        "model": str(model_folder),
        "precision": "float32",
        "output": {"max_tokens": 4},
        "window": {"min_duration_s": 0},
        "warmup": {"enabled": False},
        "pytorch": {"num_processes": 2, "batch_size": 2, "num_threads": 1},
        **config,
    }


@pytest.mark.proves("pytorch.num_processes", on="transformers 5.23.0")
async def test_prompts_are_divided_among_the_processes_that_accelerate_starts(
    server: FakeServer, work: Work, model_folder: Path
) -> None:
    attempt = server.enqueue(**two_processes(model_folder))
    await work(modules=REAL_RANK, backend="pytorch")
    assert server.ended == {}
    assert attempt in server.completed
    prompts = [
        [row["prompt_index"] for row in server.rows(attempt, f"rank-{rank}", StreamName.REQUESTS)] for rank in (0, 1)
    ]
    assert prompts == [[0, 2], [1, 3]]
    digests = {server.markers[attempt, f"rank-{rank}"].summary["outputs_sha256"] for rank in (0, 1)}
    assert len(digests) == 2
    effective = {one.name: one for one in server.started[attempt].effective_config.parameters}
    assert effective["pytorch.num_processes"].effective == 2
    assert all(one.confirmed for one in effective.values())
    assert await nothing_lives_of(attempt)


async def test_fewer_processes_than_asked_for_are_noticed(
    server: FakeServer, work: Work, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "LAUNCH_OPTIONS", ("--cpu",))
    attempt = server.enqueue(**two_processes(model_folder))
    await work(modules=REAL_RANK, backend="pytorch")
    assert server.ended[attempt].reason is FailureReason.NOT_AS_REQUESTED
    assert "2 processes were requested and accelerate started 1" in server.ended[attempt].message
    assert await nothing_lives_of(attempt)


@pytest.mark.parametrize(
    ("victim", "says"),
    [
        pytest.param("lem_worker.rank.main", "SIGKILL", marks=pytest.mark.slow),
        ("lem_worker.backends.pytorch.accelerate_launcher", "SIGKILL"),
    ],
)
async def test_a_kill_of_one_process_ends_all_of_them(
    server: FakeServer, work: Work, model_folder: Path, victim: str, says: str
) -> None:
    attempt = server.enqueue(**two_processes(model_folder, window={"min_duration_s": 600}))
    working = asyncio.create_task(work(modules=REAL_RANK, backend="pytorch"))
    await until(lambda: attempt in server.started or working.done())
    max(processes_of(attempt, victim), key=lambda process: process.pid).kill()
    await working
    assert server.ended[attempt].reason is FailureReason.INFERENCE
    assert says in server.ended[attempt].message
    assert await nothing_lives_of(attempt)


def processes_of(attempt: str, module: str) -> list[psutil.Process]:
    """The attempt's processes that were started as this module."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(ATTEMPT_VARIABLE) == attempt and module in process.cmdline():
                found.append(process)
    return found
