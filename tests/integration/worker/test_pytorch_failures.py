"""Whatever goes wrong in the real engine ends the run in a reason of its own, with the engine's last words, and leaves
the worker fit for the next run."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import psutil
import pytest
from safetensors import safe_open

from factories.fake_daemon import FAKES, nothing_lives_of, until
from factories.fake_server import FakeServer
from factories.pytorch_run import copied
from lem_domain.evidence.streams import PhaseName
from lem_domain.states import FailureReason
from lem_worker.process.children import ATTEMPT_VARIABLE

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("worker_environment")]

Work = Callable[..., Coroutine[Any, Any, None]]

REAL_RANK = FAKES._replace(rank="lem_worker.rank.main")


def a_run(folder: Path, /, **config: Any) -> dict[str, Any]:
    return {
        "backend": "pytorch",
        "model": str(folder),
        "output": {"max_tokens": 4},
        "window": {"min_duration_s": 0},
        "warmup": {"enabled": False},
        **config,
    }


async def test_each_failure_has_its_reason_and_the_worker_continues(
    server: FakeServer, work: Work, model_folder: Path, tmp_path: Path
) -> None:
    too_large = copied(model_folder, tmp_path / "too-large", vocab_size=2**38)
    truncated = copied(model_folder, tmp_path / "truncated")
    os.truncate(truncated / "model.safetensors", 1000)
    stuck = whose_weights_never_come(copied(model_folder, tmp_path / "stuck"))
    memory = server.enqueue(**a_run(too_large, model={"id": str(too_large), "weights": "dummy"}))
    checkpoint = server.enqueue(**a_run(truncated))
    option = server.enqueue(**a_run(model_folder, pytorch={"attn_implementation": "flash_attention_2"}))
    hang = server.enqueue(**a_run(stuck, limits={"load_s": 8}))
    crash = server.enqueue(**a_run(model_folder, window={"min_duration_s": 600}))
    good = server.enqueue(**a_run(model_folder))

    working = asyncio.create_task(work(modules=REAL_RANK, backend="pytorch"))
    await until(lambda: _is_measured(server, crash) or working.done())
    _rank_of(crash).send_signal(signal.SIGSEGV)
    await working

    expected = {
        memory: (FailureReason.OUT_OF_MEMORY, "can't allocate memory"),
        checkpoint: (FailureReason.BACKEND_INITIALISATION, "SafetensorError"),
        option: (FailureReason.BACKEND_UNAVAILABLE, "needs an NVIDIA GPU and the package flash-attn"),
        hang: (FailureReason.TIMEOUT, "longer than 8 s (load_s)"),
        crash: (FailureReason.INFERENCE, "rank-0 was killed by SIGSEGV during measure"),
    }
    for attempt, (reason, says) in expected.items():
        assert server.ended[attempt].reason is reason, server.ended[attempt]
        assert says in server.ended[attempt].message
        assert await nothing_lives_of(attempt)
    assert list(server.completed) == [good]
    assert server.markers[good, "rank-0"].summary["requests"] == 4


async def test_an_engine_that_cannot_be_imported_is_unavailable(
    server: FakeServer, work: Work, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    (hidden / "torch.py").write_text("raise ImportError('libcudart.so.13: cannot open shared object file')")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(hidden), os.environ["PYTHONPATH"]]))
    attempt = server.enqueue(**a_run(model_folder))
    await work(modules=REAL_RANK, backend="pytorch")
    assert server.ended[attempt].reason is FailureReason.BACKEND_UNAVAILABLE
    assert "libcudart.so.13: cannot open shared object file" in server.ended[attempt].message


def whose_weights_never_come(folder: Path) -> Path:
    """The model's only shard is a pipe that nobody writes to, as a file on a server that is gone."""
    weights = folder / "model.safetensors"
    with safe_open(weights, framework="np") as opened:
        shards = dict.fromkeys(opened.keys(), "shard.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": shards}))
    weights.unlink()
    os.mkfifo(folder / "shard.safetensors")
    return folder


def _is_measured(server: FakeServer, attempt: str) -> bool:
    told = [one.progress for beat in server.beats for one in beat.attempts if one.attempt_id == attempt]
    return any(progress is not None and progress.phase == PhaseName.MEASURE for progress in told)


def _rank_of(attempt: str) -> psutil.Process:
    found = [
        process
        for process in psutil.process_iter(["cmdline", "environ"])
        if "lem_worker.rank.main" in (process.info["cmdline"] or [])
        and (process.info["environ"] or {}).get(ATTEMPT_VARIABLE) == attempt
    ]
    assert len(found) == 1
    return found[0]
