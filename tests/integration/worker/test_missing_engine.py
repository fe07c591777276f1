"""A worker whose engine is not installed: it says so of every run that nobody else could measure."""

from __future__ import annotations

import logging
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from factories.fake_daemon import FAKES, spooled
from factories.fake_server import FakeServer
from lem_domain.ids import IdKind, format_id
from lem_domain.states import FailureReason
from lem_worker.daemon import daemon
from lem_worker.daemon.daemon import Daemon
from lem_worker.daemon.settings import WorkerSettings

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.usefixtures("worker_environment"),
    pytest.mark.skipif(find_spec("tensorrt_llm") is not None, reason="TensorRT-LLM is installed here"),
]


async def work(server: FakeServer, state: Path) -> None:
    settings = WorkerSettings(backend="tensorrt", server=server.url, state_dir=state, until_idle=True)  # type: ignore[arg-type]
    await Daemon(settings, modules=FAKES).run()


def other_worker(**changes: Any) -> dict[str, Any]:
    return {
        "id": format_id(IdKind.WORKER, uuid4()),
        "name": "other",
        "host": "other",
        "backend": "tensorrt",
        "state": "online",
        "devices": [],
        "versions": {"tensorrt-llm": "1.2.1"},
        "labels": {},
        "registered_at": "2026-01-01T00:00:00Z",
        "last_seen_at": "2026-01-01T00:00:00Z",
        "current_attempts": [],
        "current_runs": [],
        **changes,
    }


async def test_every_run_ends_at_once_with_what_to_install_where(
    server: FakeServer, state: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(daemon, "FIRST_PAUSE_S", 1e6)  # nothing gets better by waiting, so nobody waits
    caplog.set_level(logging.WARNING)
    attempts = [server.enqueue(backend="tensorrt") for _ in range(daemon.FAILURES_BEFORE_PAUSE + 2)]
    await work(server, state)
    for attempt in attempts:
        ended = server.ended[attempt]
        assert (ended.outcome, ended.reason) == ("failed", FailureReason.BACKEND_UNAVAILABLE)
        assert ended.message.startswith("TensorRT-LLM is not installed here; run the worker in NVIDIA's image (Docker")
        assert "--extra-index-url https://pypi.nvidia.com" in ended.message
    assert "ends with backend_unavailable" in caplog.text
    assert spooled(state) == []
    assert server.started == {}


async def test_runs_are_left_to_a_worker_that_has_the_engine(server: FakeServer, state: Path) -> None:
    server.others = [other_worker()]
    server.enqueue(backend="tensorrt")
    await work(server, state)
    assert server.claims == []


@pytest.mark.parametrize("change", [{"state": "offline"}, {"versions": {}}, {"backend": "vllm"}])
async def test_a_worker_that_is_gone_or_lacks_it_too_does_not_count(
    server: FakeServer, state: Path, change: dict[str, Any]
) -> None:
    server.others = [other_worker(**change)]
    attempt = server.enqueue(backend="tensorrt")
    await work(server, state)
    assert server.ended[attempt].reason is FailureReason.BACKEND_UNAVAILABLE
