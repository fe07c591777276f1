"""A rank as a process of its own: its messages, its evidence, and every way in which it can fail."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lem_domain.config.experiment import ExperimentConfig
from lem_domain.evidence.codec import decode_chunk
from lem_domain.evidence.streams import StreamManifest, StreamName
from lem_domain.states import FailureReason
from lem_domain.wire.workers import ProcessCompletion
from lem_worker.process.protocol import (
    Done,
    Failed,
    Finish,
    Go,
    Loaded,
    Measured,
    PhaseEdge,
    PowerSlope,
    RankJob,
    Ready,
    Tick,
    WarmUp,
)
from lem_worker.process.spool import is_complete, sealed_chunks, write_completion_marker

SHOWN_BY_DEFAULT = {
    ("load", "out_of_memory"),
    ("warmup", "exit"),
    ("measure", "raise"),
    ("measure", "hang"),
    ("measure", "kill"),
}
"""Every phase and every kind of failure once; the slow suite has all combinations."""
MODULE = "lem_worker.rank.main"
TEXTS = ("one two three", "four five", "six", "seven eight nine ten")
QUICK: dict[str, Any] = {
    "backend": "simulated",
    "model": "m",
    "output": {"max_tokens": 4},
    "window": {"min_duration_s": 0, "min_requests": 6},
    "warmup": {"min_requests": 2, "window_size": 2, "max_requests": 3},
}


def job(folder: Path, *, rank: int = 0, world_size: int = 1, model_path: str = "m", **config: Any) -> RankJob:
    return RankJob(
        attempt_id="a",
        rank=rank,
        world_size=world_size,
        config=ExperimentConfig.model_validate({**QUICK, "simulated": {"decode_ms_per_token": 1}, **config}),
        model_path=model_path,
        prompts=TEXTS,
        spool=str(folder / f"spool-{rank}"),
        devices=(),
    )


def pytorch_job(folder: Path, model: Path, **config: Any) -> RankJob:
    return job(folder, model_path=str(model), **{"backend": "pytorch", "simulated": None, **config})


def rows(task: RankJob, stream: StreamName) -> list[dict[str, Any]]:
    """All rows of a stream, from the files in the spool."""
    files = [chunk.path for chunk in sealed_chunks(Path(task.spool)) if chunk.stream is stream]
    return [row for file in files for row in decode_chunk(stream, file.read_bytes()).to_pylist()]


def ready(process: Any) -> None:
    """Until it is warm."""
    process.until(Loaded)
    process.send(WarmUp())
    process.until(Ready)


def sealed(process: Any) -> Done:
    """From the window to its evidence."""
    process.until(Measured)
    process.send(Finish())
    done: Done = process.until(Done)
    return done


def finish(process: Any) -> Done:
    """From its start to a good end."""
    ready(process)
    process.send(Go())
    done = sealed(process)
    assert process.to_the_end() == 0, process.stderr()
    return done


def test_a_rank_loads_warms_up_waits_measures_and_seals(tmp_path: Path, drive: Callable[..., Any]) -> None:
    task = job(tmp_path, simulated={"batch_size": 3})
    process = drive(MODULE, task)
    ready(process)
    assert process.is_silent_for(0.05)
    process.send(Go())
    done = sealed(process)
    assert process.to_the_end() == 0
    order = [
        (message.phase.value, message.edge) if isinstance(message, PhaseEdge) else message.type
        for message in process.messages
        if not isinstance(message, Tick)
    ]
    assert order == [
        ("load", "begin"),
        ("load", "end"),
        "loaded",
        ("warmup", "begin"),
        ("warmup", "end"),
        "ready",
        ("measure", "begin"),
        ("measure", "end"),
        "measured",
        "done",
    ]
    requests = rows(task, StreamName.REQUESTS)
    assert [row["prompt_index"] for row in requests] == [0, 1, 2, 3] * 2
    assert [row["generated_tokens"] for row in requests] == [4] * 8
    assert len(rows(task, StreamName.TOKENS)) == 32
    marks = [(row["phase"], row["edge"], row["time_ns"]) for row in rows(task, StreamName.PHASES)]
    sent = [(edge.phase.value, edge.edge, edge.time_ns) for edge in process.messages if isinstance(edge, PhaseEdge)]
    assert marks == sent
    measure = {edge: time for phase, edge, time in marks if phase == "measure"}
    assert all(measure["begin"] <= row["arrival_ns"] < row["last_token_ns"] <= measure["end"] for row in requests)
    assert {manifest.stream for manifest in done.streams} == {
        StreamName.REQUESTS,
        StreamName.TOKENS,
        StreamName.PHASES,
        StreamName.EVENTS,
    }
    assert _rows_in(done, StreamName.REQUESTS) == 8
    assert done.summary["requests"] == 8
    assert done.summary["repetitions"] == 2
    assert done.summary["prompt_tokens"] == 20
    assert done.summary["generated_tokens"] == 32
    assert done.summary["outputs_repeat"] is True


@pytest.mark.proves(
    "warmup.enabled", "warmup.min_requests", "warmup.max_requests", "warmup.cv_threshold", on="simulated"
)
def test_warm_up_is_recorded_with_its_outcome(tmp_path: Path, drive: Callable[..., Any]) -> None:
    steady = job(tmp_path / "a", warmup={"min_requests": 2, "window_size": 2, "max_requests": 50, "cv_threshold": 1})
    wild = job(tmp_path / "b", warmup={"min_requests": 2, "window_size": 2, "max_requests": 3, "cv_threshold": 1e-9})
    none = job(tmp_path / "c", warmup={"enabled": False})
    for task, converged, count in ((steady, True, 2), (wild, False, 3), (none, None, 0)):
        done = finish(drive(MODULE, task))
        assert (done.summary["warmup_converged"], done.summary["warmup_requests"]) == (converged, count)
        events = [json.loads(row["detail"]) for row in rows(task, StreamName.EVENTS) if row["kind"] == "warmup"]
        assert [(event["converged"], event["requests"]) for event in events] == ([(converged, count)] if count else [])


@pytest.mark.proves("simulated.num_processes", on="simulated")
def test_ranks_divide_prompts_and_requests_and_digests_repeat(tmp_path: Path, drive: Callable[..., Any]) -> None:
    def measured(folder: str, rank: int) -> tuple[RankJob, Done]:
        simulated = {"num_processes": 2, "decode_ms_per_token": 0}
        task = job(tmp_path / folder, rank=rank, world_size=2, simulated=simulated)
        return task, finish(drive(MODULE, task))

    (first, done_first), (second, done_second), (_, again) = (
        measured("a", 0),
        measured("a", 1),
        measured("b", 0),
    )
    assert [row["prompt_index"] for row in rows(first, StreamName.REQUESTS)] == [0, 2, 0, 2]
    assert [row["prompt_index"] for row in rows(second, StreamName.REQUESTS)] == [1, 3, 1, 3]
    for digest in ("prompts_sha256", "outputs_sha256"):
        assert done_first.summary[digest] == again.summary[digest] != done_second.summary[digest]


@pytest.mark.proves("record.tokens", "record.outputs", on="simulated")
def test_what_to_record_is_up_to_the_user(tmp_path: Path, drive: Callable[..., Any]) -> None:
    task = job(tmp_path, record={"tokens": False, "outputs": True})
    done = finish(drive(MODULE, task))
    assert _rows_in(done, StreamName.TOKENS) == 0
    outputs = [json.loads(row["detail"]) for row in rows(task, StreamName.EVENTS) if row["kind"] == "output"]
    assert [output["prompt_index"] for output in outputs] == [0, 1, 2, 3]
    assert all(len(output["text"].split()) == 4 for output in outputs)


@pytest.mark.proves("window.min_duration_s", on="simulated")
def test_the_window_lasts_as_long_as_asked_and_ticks_on_the_way(tmp_path: Path, drive: Callable[..., Any]) -> None:
    task = job(tmp_path, window={"min_duration_s": 1.2}, simulated={"decode_ms_per_token": 5})
    process = drive(MODULE, task)
    finish(process)
    requests = rows(task, StreamName.REQUESTS)
    assert requests[-1]["last_token_ns"] - requests[0]["arrival_ns"] >= 1.2e9
    ticks = [message for message in process.messages if isinstance(message, Tick) and message.phase == "measure"]
    assert ticks
    assert len(ticks) <= 1 + (requests[-1]["last_token_ns"] - requests[0]["arrival_ns"]) / 0.5e9
    assert 0 < (ticks[0].fraction or 0) <= 1
    assert ticks[0].requests_ended > 0
    assert (ticks[0].output_rate_tok_s or 0) > 0


@pytest.mark.proves("warmup.power_slope", on="simulated")
def test_warm_up_continues_until_the_reported_power_has_settled(tmp_path: Path, drive: Callable[..., Any]) -> None:
    task = job(tmp_path, warmup={"min_requests": 2, "window_size": 2, "max_requests": 10_000, "cv_threshold": 1})
    process = drive(MODULE, task)
    process.until(Loaded)
    process.send(WarmUp(power_known=True))
    process.send(PowerSlope(slope=0.5))
    process.until(Tick)
    process.send(PowerSlope(slope=0.001))
    process.until(Ready)
    process.send(Go())
    assert sealed(process).summary["warmup_converged"] is True
    (warmup,) = (json.loads(row["detail"]) for row in rows(task, StreamName.EVENTS) if row["kind"] == "warmup")
    assert warmup["power_slope"] == 0.001
    assert warmup["requests"] > 2


# --- failures ---------------------------------------------------------------------------------------------------------


@pytest.mark.proves("simulated.fail.at", "simulated.fail.how", on="simulated")
@pytest.mark.parametrize(
    ("at", "how"),
    [
        pytest.param(at, how, marks=() if (at, how) in SHOWN_BY_DEFAULT else pytest.mark.slow)
        for at in ("load", "warmup", "measure")
        for how in ("raise", "out_of_memory", "hang", "exit", "kill")
    ],
)
def test_every_simulated_failure(tmp_path: Path, drive: Callable[..., Any], at: str, how: str) -> None:
    task = job(tmp_path, simulated={"fail": {"at": at, "how": how}})
    process = drive(MODULE, task)
    if at == "warmup":
        process.until(Loaded)
        process.send(WarmUp())
    if at == "measure":
        ready(process)
        process.send(Go())
    while (edge := process.until(PhaseEdge)).phase != at:
        pass
    assert edge.edge == "begin"
    match how:
        case "hang":
            assert process.is_silent_for(0.3)
            assert process.process.poll() is None
        case "exit":
            assert process.to_the_end() == 3
        case "kill":
            assert process.to_the_end() == -9
        case _:
            failed = process.until(Failed)
            assert process.to_the_end() == 1
            _check_failure(task, failed, at=at, how=how)
    assert not any(isinstance(message, Done) for message in process.messages)


@pytest.mark.parametrize("how", ["raise", "exit", "kill", "hang"])
def test_what_fails_while_it_unloads_costs_nothing_that_was_measured(
    tmp_path: Path, drive: Callable[..., Any], how: str
) -> None:
    task = job(tmp_path, simulated={"fail": {"at": "cleanup", "how": how}})
    process = drive(MODULE, task)
    ready(process)
    process.send(Go())
    done = sealed(process)
    assert is_complete(Path(task.spool), ["rank-0"]) is False
    write_completion_marker(Path(task.spool), "rank-0", ProcessCompletion(streams=done.streams))
    assert is_complete(Path(task.spool), ["rank-0"])
    if how == "hang":
        assert process.is_silent_for(0.3)
        assert process.process.poll() is None
    else:
        assert process.to_the_end() == {"raise": 1, "exit": 3, "kill": -9}[how]


def _check_failure(task: RankJob, failed: Failed, *, at: str, how: str) -> None:
    if how == "out_of_memory":
        assert failed.reason is FailureReason.OUT_OF_MEMORY
    elif at == "load":
        assert failed.reason is FailureReason.BACKEND_INITIALISATION
    else:
        assert failed.reason is FailureReason.INFERENCE
    assert f"in {at}, as simulated.fail asks for." in failed.message
    assert StreamName.PHASES in {manifest.stream for manifest in failed.streams}
    assert rows(task, StreamName.PHASES)[-1]["edge"] == "end"
    if at == "measure":
        (row,) = rows(task, StreamName.REQUESTS)
        assert (row["generated_tokens"], row["error"]) == (1, failed.message)


@pytest.mark.proves("input.max_tokens", "input.truncate", on="simulated")
def test_a_prompt_that_is_too_long_is_refused_while_loading(tmp_path: Path, drive: Callable[..., Any]) -> None:
    process = drive(MODULE, job(tmp_path, input={"max_tokens": 3}))
    failed = process.until(Failed)
    assert failed.reason is FailureReason.BACKEND_INITIALISATION
    assert failed.message.startswith("prompt 3 has 4 tokens and input.max_tokens is 3; raise input.max_tokens")
    assert not any(isinstance(message, Loaded) for message in process.messages)


def test_a_missing_package_is_named_with_what_to_install(tmp_path: Path, drive: Callable[..., Any]) -> None:
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    (hidden / "torch.py").write_text("raise ModuleNotFoundError(\"No module named 'torch'\", name='torch')")
    path = os.pathsep.join([str(hidden), os.environ.get("PYTHONPATH", "")])
    process = drive(MODULE, pytorch_job(tmp_path, tmp_path), PYTHONPATH=path)
    failed = process.until(Failed)
    assert failed.reason is FailureReason.BACKEND_UNAVAILABLE
    assert "needs the package torch; install llm-energy-measurement[pytorch]" in failed.message


def test_a_model_that_is_not_there_fails_the_load(tmp_path: Path, drive: Callable[..., Any]) -> None:
    process = drive(MODULE, pytorch_job(tmp_path, tmp_path / "nowhere"), HF_HUB_OFFLINE="1")
    assert process.until(Failed).reason is FailureReason.BACKEND_INITIALISATION


def test_a_rank_whose_daemon_is_gone_ends(tmp_path: Path, drive: Callable[..., Any]) -> None:
    process = drive(MODULE, job(tmp_path))
    ready(process)
    process.hang_up()
    assert process.process.wait() != 0
    assert "DaemonGone" in process.stderr()


# --- the real engine --------------------------------------------------------------------------------------------------


@pytest.mark.proves(
    "backend", "precision", "pytorch.batch_size", "pytorch.num_threads", "output.max_tokens", on="transformers 5.23.0"
)
def test_pytorch_in_its_own_process(tmp_path: Path, tiny_llama: Path, drive: Callable[..., Any]) -> None:
    task = pytorch_job(tmp_path, tiny_llama, precision="float32", pytorch={"batch_size": 2, "num_threads": 1})
    process = drive(MODULE, task)
    loaded = process.until(Loaded)
    effective = {parameter.name: parameter.effective for parameter in loaded.effective_config.parameters}
    assert loaded.effective_config.engine.startswith("transformers ")
    assert effective["precision"] == "float32"
    assert effective["pytorch.batch_size"] == 2
    assert effective["pytorch.num_threads"] == 1
    assert all(parameter.confirmed for parameter in loaded.effective_config.parameters)
    process.send(WarmUp())
    process.until(Ready)
    process.send(Go())
    done = sealed(process)
    assert process.to_the_end() == 0, process.stderr()
    requests = rows(task, StreamName.REQUESTS)
    assert [row["generated_tokens"] for row in requests] == [4] * 8
    assert [row["batch_id"] for row in requests][0::2] == [row["batch_id"] for row in requests][1::2]
    assert done.summary["outputs_repeat"] is True
    assert len(rows(task, StreamName.TOKENS)) == 32


@pytest.mark.proves("model.id", "model.revision", on="transformers 5.23.0")
def test_a_revision_of_a_hub_model_is_the_one_that_is_loaded(
    tmp_path: Path, tiny_llama: Path, drive: Callable[..., Any]
) -> None:
    """From the hub's cache, laid out by hand as the hub's own client does it; no network."""
    cached = tmp_path / "hub" / "models--someone--tiny"
    for name, commit in (("main", "a" * 40), ("older", "b" * 40)):
        shutil.copytree(tiny_llama, cached / "snapshots" / commit)
        (cached / "refs").mkdir(exist_ok=True)
        (cached / "refs" / name).write_text(commit)
    model = {"id": "someone/tiny", "revision": "older"}
    task = job(tmp_path, model_path="someone/tiny", backend="pytorch", simulated=None, model=model)
    process = drive(MODULE, task, HF_HUB_CACHE=str(tmp_path / "hub"), HF_HUB_OFFLINE="1")
    parameters = process.until(Loaded).effective_config.parameters
    (found,) = (one for one in parameters if one.name == "model.revision")
    assert (found.requested, found.effective, found.confirmed) == ("older", "b" * 40, True)


def _rows_in(done: Done, stream: StreamName) -> int:
    found: list[StreamManifest] = [manifest for manifest in done.streams if manifest.stream is stream]
    return sum(manifest.rows for manifest in found)
