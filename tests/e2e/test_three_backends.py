"""One campaign over several engines on a machine that lacks one of them: the others are measured, the missing one is
reported, and nobody but a rank has an engine in its memory."""

from __future__ import annotations

import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from factories.campaign_files import campaign
from factories.mapped import by_role, engine_libraries
from lem_domain.states import RunState

LONG_S = 600.0

needs_absence = pytest.mark.skipif(find_spec("tensorrt_llm") is not None, reason="TensorRT-LLM is installed here")


@needs_absence
def test_a_missing_engine_is_a_row_of_the_table_and_affects_no_other_run(house: Any, tmp_path: Path) -> None:
    pytorch = house.start_worker("pytorch", "pytorch")
    house.start_worker("tensorrt", "tensorrt")
    path = campaign(
        tmp_path,
        model="builtin:tiny-llama",
        prompts={"sample_size": 2},
        output={"max_tokens": 8},
        baseline={"enabled": False},
        window={"min_duration_s": 3},
        warmup={"max_requests": 3, "min_requests": 2, "window_size": 2, "power_slope": None},
        energy={"interval_ms": 100},
        sweep={"backend": ["tensorrt", "pytorch"]},
        execution={"cycles": 2},
    )
    with house.client() as client:
        assert house.lemctl("submit", path).returncode == 0
        [view] = client.campaigns()
        assert engine_libraries(by_role(pytorch.pid)["daemon"]) == set()
        processes: dict[str, int] = {}
        until = time.monotonic() + LONG_S
        while {"beat", "sampler", "rank"} - set(processes) and time.monotonic() < until:
            if any(run.state is RunState.RUNNING for run in client.runs(campaign_id=view.id)):
                processes = by_role(pytorch.pid)
        seen = {role: engine_libraries(pid) for role, pid in processes.items()}
        watched = house.lemctl("watch", view.id)
        assert watched.returncode == 1, watched.stderr
        assert seen["rank"] == {"libtorch"}, "else this test would not notice an engine"
        assert seen["daemon"] == seen["beat"] == seen["sampler"] == set()
        after = by_role(pytorch.pid)
        assert [engine_libraries(after[role]) for role in ("daemon", "beat")] == [set(), set()]
        missing = [run for run in client.runs(campaign_id=view.id) if run.backend == "tensorrt"]
        measured = [run for run in client.runs(campaign_id=view.id) if run.backend == "pytorch"]
    assert [(run.state, run.reason) for run in missing] == [(RunState.FAILED, "backend_unavailable")] * 2
    assert [run.state for run in measured] == [RunState.AGGREGATED] * 2
    shown = " ".join(watched.stdout.split())
    assert "backend=tensorrt │ 0 of 2" in shown or "backend=tensorrt 0 of 2" in shown
    assert "no result, failed (backend_unavailable): TensorRT-LLM is not installed here; run the worker in" in shown
    assert "Dockerfile.trt" in shown


@pytest.mark.slow
def test_a_worker_is_fit_after_every_simulated_failure(house: Any, tmp_path: Path) -> None:
    house.start_worker("simulated")
    failures = [
        {"at": "load", "how": "out_of_memory"},
        {"at": "load", "how": "raise"},
        {"at": "load", "how": "hang"},
        {"at": "measure", "how": "kill"},
        {"at": "measure", "how": "out_of_memory"},
        None,
    ]
    path = campaign(
        tmp_path,
        backend="simulated",
        model="m",
        prompts={"sample_size": 2},
        output={"max_tokens": 4},
        baseline={"enabled": False},
        window={"min_duration_s": 0.2},
        warmup={"max_requests": 2, "min_requests": 2, "window_size": 2, "power_slope": None},
        limits={"load_s": 4},
        sweep={"simulated.fail": failures},
    )
    assert house.lemctl("run", path, timeout_s=LONG_S).returncode == 1
    with house.client() as client:
        runs = list(client.runs())
    assert [(run.state.value, run.reason) for run in runs] == [
        ("failed", "out_of_memory"),
        ("failed", "backend_initialisation"),
        ("failed", "timeout"),
        ("failed", "inference"),
        ("failed", "out_of_memory"),
        ("aggregated", None),
    ]
    said = [run.message or "" for run in runs]
    assert "load_s" in said[2]
    assert "was killed by SIGKILL" in said[3]
