"""Before any process of a run starts: a model is found or made, in a process that can be stopped at any moment."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import os
import signal
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil
import pytest

from factories.fake_daemon import killed_worker, nothing_lives_of, spooled, until
from factories.fake_server import FakeServer
from lem_domain.config.experiment import ExperimentConfig
from lem_domain.states import FailureReason
from lem_worker.daemon.attempt_end import AttemptEnded
from lem_worker.daemon.preparation import prepare
from lem_worker.process.children import ATTEMPT_VARIABLE
from lem_worker.server_api import ServerApi

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("worker_environment")]

Work = Callable[..., Coroutine[Any, Any, None]]

STUCK_ENGINE = """
import os, signal, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
open(os.environ["STUCK"], "w").close()
while True:
    signal.pause()
"""


def looks_for_a_model(attempt: str) -> bool:
    for process in psutil.process_iter():
        try:
            if process.environ().get(ATTEMPT_VARIABLE) == attempt and "lem_worker.models.find" in process.cmdline():
                return True
        except psutil.Error:
            continue
    return False


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """As while another worker makes the model."""
    path.parent.mkdir(parents=True)
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@pytest.mark.parametrize("stuck", ["making", "waiting"])
@pytest.mark.parametrize("end", ["cancel", "sigterm", "limit", "kill"])
async def test_a_model_that_takes_for_ever_can_be_stopped(
    server: FakeServer, work: Work, state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stuck: str, end: str
) -> None:
    (tmp_path / "hidden").mkdir()
    (tmp_path / "hidden" / "torch.py").write_text(STUCK_ENGINE)
    mark = tmp_path / "stuck"
    monkeypatch.setenv("STUCK", str(mark))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "hidden"), os.environ["PYTHONPATH"]]))
    monkeypatch.setenv("LEM_CACHE_DIR", str(tmp_path / "cache"))
    limits = {"load_s": 3 if end == "limit" else 600}
    attempt = server.enqueue(backend="pytorch", model="builtin:tiny-llama", limits=limits)

    def is_stuck() -> bool:
        return mark.exists() if stuck == "making" else looks_for_a_model(attempt)

    lock = tmp_path / "cache" / "models" / ".tiny-llama.lock"
    with locked(lock) if stuck == "waiting" else contextlib.nullcontext():
        if end == "kill":
            await killed_worker(server, state, is_stuck)
            await until(lambda: not looks_for_a_model(attempt))
            await work()
            assert spooled(state) == []
            assert server.ended == server.completed == {}
        else:
            running = asyncio.create_task(work())
            if end != "limit":
                await until(is_stuck)
            if end == "cancel":
                server.verdict = "cancel"
            if end == "sigterm":
                os.kill(os.getpid(), signal.SIGTERM)
            await running
            ended = server.ended[attempt]
            assert (ended.outcome, ended.reason) == {
                "cancel": ("cancelled", FailureReason.USER_CANCELLED),
                "sigterm": ("interrupted", FailureReason.WORKER_SHUTDOWN),
                "limit": ("failed", FailureReason.TIMEOUT),
            }[end]
            if end == "limit":
                assert ended.message.startswith("finding the model and the prompts took longer than 3 s (load_s)")
        assert await nothing_lives_of(attempt)


async def test_a_cache_on_which_nothing_can_be_made_is_the_machines_fault(
    server: FakeServer, work: Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "cache").write_text("a file")
    monkeypatch.setenv("LEM_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr("lem_worker.daemon.daemon.FIRST_PAUSE_S", 0.01)
    attempts = [server.enqueue(backend="pytorch", model="builtin:tiny-llama") for _ in range(3)]
    await work()
    assert server.ended[attempts[0]].reason is FailureReason.BACKEND_UNAVAILABLE
    assert "set --cache-dir" in server.ended[attempts[0]].message
    assert "claiming nothing" in caplog.text


async def test_what_goes_with_a_model_is_found_and_hashed(server: FakeServer, tmp_path: Path) -> None:
    model, adapter = tmp_path / "model", tmp_path / "adapter"
    for folder, name in ((model, "config.json"), (adapter, "adapter_config.json")):
        folder.mkdir()
        (folder / name).write_text("{}")
    document = {
        "model": {"id": str(model), "adapter": str(adapter)},
        "pytorch": {"assisted_decoding": {"model": str(model)}},
    }
    config = ExperimentConfig.model_validate(document)
    async with contextlib.aclosing(ServerApi(server.url, "secret", worker_id="wrk_a", boot_id=uuid4())) as api:
        found = await prepare(config, api, attempt_id="att_a", cache_dir=tmp_path / "cache")
        assert found.adapter is not None
        assert found.assistant is not None
        assert (found.adapter.path_or_id, found.assistant.path_or_id) == (str(adapter), str(model))
        digest = hashlib.sha256(b"{}").hexdigest()
        assert found.files == {
            "model_files": {"config.json": digest},
            "adapter_files": {"adapter_config.json": digest},
            "assistant_files": {"config.json": digest},
        }
        assert found.is_local
        (adapter / "adapter_config.json").unlink()
        with pytest.raises(AttemptEnded, match=r"holds no adapter_config.json; name the folder of an adapter"):
            await prepare(config, api, attempt_id="att_a", cache_dir=tmp_path / "cache")
