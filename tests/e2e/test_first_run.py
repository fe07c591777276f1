"""From a campaign file to figures, through real processes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from factories.campaign_files import campaign
from lem_client import Client
from lem_domain.results.run import RunResult
from lem_domain.states import RunState


def run_json(house, path: Path) -> tuple[int, dict[str, object], str]:  # type: ignore[no-untyped-def]
    done = house.lemctl("run", path, "--json")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return done.returncode, lines[-1] if lines else {}, done.stderr


def results_of(client: Client, campaign_id: str) -> list[RunResult]:
    return [client.result(run.id) for run in client.runs(campaign_id=campaign_id)]


@pytest.mark.finds("energy_modelled")
def test_tiny_llama_on_pytorch_gives_energy_tokens_and_latency(house, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    house.start_worker("pytorch")
    path = campaign(
        tmp_path,
        backend="pytorch",
        model="builtin:tiny-llama",
        prompts={"sample_size": 4},
        output={"max_tokens": 8},
        baseline={"enabled": False},
        window={"min_duration_s": 2},
        warmup={"max_requests": 5, "power_slope": None},
        energy={"interval_ms": 100},
        pytorch={"num_threads": 1},
        sweep={"pytorch.batch_size": [1, 4]},
    )
    code, last, errors = run_json(house, path)
    assert code == 0, errors
    with house.client() as client:
        [view] = list(client.campaigns())
        results = results_of(client, view.id)
        assert len(results) == 2
        for result in results:
            assert result.work.generated_tokens == result.work.requests * 8
            assert result.work.requests % 4 == 0
            assert result.window.duration_s >= 2
            assert result.speed.ttft_ms.count == result.work.requests
            assert result.speed.itl_ms.count == result.work.requests * 7
            assert result.energy.total.method == "modelled"
            assert "energy_modelled" in {finding.code for finding in result.findings}
            assert set(result.energy.includes) == {"package", "dram"}
            per_token = result.efficiency.energy_per_output_token_j.value
            assert per_token is not None and result.energy.total.joules is not None
            assert per_token == pytest.approx(result.energy.total.joules / result.work.generated_tokens)
        for run in client.runs(campaign_id=view.id):
            [attempt] = list(client.attempts(run.id))
            assert attempt.effective_config is not None and attempt.environment is not None
            effective = {one.name: one for one in attempt.effective_config.parameters}
            assert all(one.confirmed for one in effective.values())
            assert effective["pytorch.batch_size"].effective in (1, 4)
            states = [entry.target for entry in client.transitions(run.id)]
            assert states == [
                RunState.QUEUED,
                RunState.INITIALISED,
                RunState.RUNNING,
                RunState.COMPLETED,
                RunState.AGGREGATED,
            ]
    assert last


@pytest.mark.slow
@pytest.mark.proves("model.id", on="transformers 5.23.0")
@pytest.mark.smollm2
def test_real_weights_answer_and_cost_energy(house, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    house.start_worker("pytorch")
    (tmp_path / "prompts.txt").write_text("What is the capital of France?\n")
    path = campaign(
        tmp_path,
        backend="pytorch",
        model="builtin:smollm2-135m-instruct",
        prompts={"file": "prompts.txt", "chat_template": True},
        output={"max_tokens": 12, "mode": "natural"},
        baseline={"enabled": False},
        window={"min_duration_s": 2},
        warmup={"max_requests": 2, "min_requests": 2, "window_size": 2},
        record={"outputs": True},
        pytorch={"num_threads": 1},
    )
    code, _, errors = run_json(house, path)
    assert code == 0, errors
    with house.client() as client:
        [run] = list(client.runs())
        result = client.result(run.id)
        assert result.energy.total.joules is not None and result.energy.total.joules > 0
        # "The capital of France is Paris." and the end of sequence: natural mode stops by itself.
        assert 5 <= result.work.generated_tokens / result.work.requests < 12


def test_a_rank_that_dies_fails_its_run_and_the_worker_continues(house, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    house.start_worker("simulated")
    path = campaign(
        tmp_path,
        backend="simulated",
        model="simulated",
        prompts={"sample_size": 4},
        output={"max_tokens": 4},
        baseline={"enabled": False},
        window={"min_duration_s": 0.2},
        sweep={"simulated.fail": [{"at": "measure", "how": "kill"}, {"at": "load", "how": "raise"}, None]},
    )
    code, _, _ = run_json(house, path)
    assert code == 1
    with house.client() as client:
        killed, raised, fine = list(client.runs())
        assert (killed.state, killed.reason) == (RunState.FAILED, "inference")
        assert "SIGKILL" in (killed.message or "")
        assert (raised.state, raised.reason) == (RunState.FAILED, "backend_initialisation")
        assert fine.state is RunState.AGGREGATED
        assert list(client.logs(raised.id)), "the log of the failed run is kept"


def test_an_engine_that_lies_is_caught_before_the_window(house, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    house.start_worker("simulated")
    path = campaign(tmp_path, backend="simulated", model="m", simulated={"misreport": ["batch_size"], "batch_size": 2})
    code, _, _ = run_json(house, path)
    assert code == 1
    with house.client() as client:
        [run] = list(client.runs())
        assert (run.state, run.reason) == (RunState.FAILED, "not_as_requested")
        assert "batch_size" in (run.message or "")
