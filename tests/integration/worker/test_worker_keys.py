"""Configuration keys through the real worker: its daemon, its rank and its sampler, over simulated devices."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from factories.fake_server import FakeServer
from lem_domain.backends.simulated import SimulatedPower
from lem_domain.evidence.streams import SAMPLER, StreamName
from lem_domain.states import FailureReason
from lem_worker.daemon.process_start import ProcessModules
from lem_worker.sampler.sources.simulated import energy_j

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("worker_environment")]

Work = Callable[..., Coroutine[Any, Any, None]]

REAL = ProcessModules()
RANK = "rank-0"
QUICK: dict[str, Any] = {
    "output": {"max_tokens": 4},
    "window": {"min_duration_s": 0, "min_requests": 4},
    "warmup": {"enabled": False},
    "energy": {"interval_ms": 10},
}


def requests_of(server: FakeServer, attempt: str, process: str = RANK) -> list[dict[str, Any]]:
    return server.rows(attempt, process, StreamName.REQUESTS)


def seconds(rows: list[dict[str, Any]]) -> list[float]:
    """Arrivals, from the first one on."""
    return [(row["arrival_ns"] - rows[0]["arrival_ns"]) / 1e9 for row in rows]


# --- prompts ----------------------------------------------------------------------------------------------------------


@pytest.mark.proves(
    "prompts.synthetic.prompt_tokens",
    "prompts.synthetic.spread",
    "prompts.synthetic.count",
    "prompts.synthetic.seed",
    "prompts.order",
    "prompts.sample_size",
    on="simulated",
)
async def test_synthetic_prompts_have_the_lengths_asked_for(server: FakeServer, work: Work) -> None:
    made = {"prompt_tokens": 20, "spread": 5, "count": 30}
    attempts = {
        name: server.enqueue(**{**QUICK, "prompts": prompts, **more})
        for name, prompts, more in (
            ("plain", {"synthetic": made}, {}),
            ("seeded", {"synthetic": {**made, "seed": 1}}, {}),
            ("longest", {"synthetic": made, "order": "longest_first", "sample_size": 7}, {}),
            ("ranks", {"synthetic": made}, {"simulated": {"num_processes": 2}}),
        )
    }
    await work(modules=REAL)
    lengths = {name: [row["prompt_tokens"] for row in requests_of(server, one)] for name, one in attempts.items()}
    assert len(lengths["plain"]) == 30
    assert 15 <= min(lengths["plain"]) < max(lengths["plain"]) <= 25
    assert lengths["seeded"] != lengths["plain"]
    assert lengths["longest"] == sorted(lengths["plain"], reverse=True)[:7]
    other = [row["prompt_tokens"] for row in requests_of(server, attempts["ranks"], "rank-1")]
    assert (lengths["ranks"], other) == (lengths["plain"][0::2], lengths["plain"][1::2])


@pytest.mark.proves(
    "prompts.builtin", "prompts.dataset", "prompts.order", "prompts.seed", "prompts.sample_size", on="simulated"
)
async def test_prompts_come_from_their_source_in_their_order(server: FakeServer, work: Work) -> None:
    texts = ("a b c", "a", "a b c d e", "a b")
    server.datasets["1" * 64] = texts
    sources: dict[str, dict[str, Any]] = {
        "as_is": {"dataset": "1" * 64},
        "longest": {"dataset": "1" * 64, "order": "longest_first", "sample_size": 3},
        "shuffled": {"dataset": "1" * 64, "order": "shuffled", "seed": 5},
        "shuffled again": {"dataset": "1" * 64, "order": "shuffled", "seed": 6},
        "builtin": {"builtin": "general-v1", "sample_size": 2},
    }
    attempts = {name: server.enqueue(**{**QUICK, "prompts": prompts}) for name, prompts in sources.items()}
    await work(modules=REAL)
    lengths = {name: [row["prompt_tokens"] for row in requests_of(server, one)] for name, one in attempts.items()}
    assert lengths["as_is"] == [3, 1, 5, 2]
    assert lengths["longest"][:3] == [5, 3, 2]
    assert sorted(lengths["shuffled"]) == sorted(lengths["shuffled again"]) == [1, 2, 3, 5]
    assert lengths["shuffled"] != lengths["shuffled again"]
    assert len({row["prompt_index"] for row in requests_of(server, attempts["builtin"])}) == 2


async def test_prompts_of_a_hub_without_the_library_are_unavailable_here(
    server: FakeServer, work: Work, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("no-library")
    (folder / "datasets.py").write_text("raise ImportError('no datasets here', name='datasets')")
    monkeypatch.setenv("PYTHONPATH", f"{folder}:{__import__('os').environ['PYTHONPATH']}")
    attempt = server.enqueue(**{**QUICK, "prompts": {"huggingface": {"dataset": "a/b"}}})
    await work(modules=REAL)
    assert server.ended[attempt].reason is FailureReason.BACKEND_UNAVAILABLE
    assert "install llm-energy-measurement[datasets]" in server.ended[attempt].message


# --- traffic and window -----------------------------------------------------------------------------------------------


@pytest.mark.proves("traffic.arrivals", "traffic.trace", "traffic.mode", on="simulated")
async def test_a_trace_of_arrivals_is_replayed(server: FakeServer, work: Work) -> None:
    times = (0.0, 0.05, 0.05, 0.2, 0.21)
    server.datasets["2" * 64] = tuple(map(str, times))
    traffic = {"mode": "open", "arrivals": "trace", "trace": "2" * 64}
    once = server.enqueue(**{**QUICK, "traffic": traffic, "prompts": {"sample_size": 5}})
    divided = server.enqueue(**{**QUICK, "traffic": traffic, "simulated": {"num_processes": 2}})
    await work(modules=REAL)
    assert seconds(requests_of(server, once)) == pytest.approx(times, abs=1e-6)
    by_rank = [requests_of(server, divided, rank) for rank in ("rank-0", "rank-1")]
    assert seconds(by_rank[0])[:3] == pytest.approx([0, 0.05, 0.21], abs=1e-6)
    assert seconds(by_rank[1])[:2] == pytest.approx([0, 0.15], abs=1e-6)


@pytest.mark.proves("traffic.trace", on="simulated")
async def test_a_trace_that_is_none_fails_the_run_with_its_line(server: FakeServer, work: Work) -> None:
    server.datasets["3" * 64] = ("0", "soon")
    attempt = server.enqueue(**QUICK, traffic={"mode": "open", "arrivals": "trace", "trace": "3" * 64})
    await work(modules=REAL)
    assert "line 2 of the trace is 'soon'" in server.ended[attempt].message


@pytest.mark.proves("window.max_duration_s", "window.min_requests", "traffic.concurrency", on="simulated")
async def test_the_window_ends_when_its_time_is_up(server: FakeServer, work: Work) -> None:
    window = {"min_duration_s": 0, "min_requests": 100_000, "max_duration_s": 0.3}
    slow = {"simulated": {"decode_ms_per_token": 5}, "window": window, "prompts": {"sample_size": 50}}
    traffic: dict[str, dict[str, Any]] = {
        "offline": {},
        "closed": {"mode": "closed", "concurrency": 2},
        "open": {"mode": "open", "rate_per_s": 50, "arrivals": "constant"},
    }
    attempts = {name: server.enqueue(**{**QUICK, **slow, "traffic": how}) for name, how in traffic.items()}
    whole = server.enqueue(**{**QUICK, "window": {"min_duration_s": 0, "min_requests": 4, "max_duration_s": 60}})
    await work(modules=REAL)
    for name, attempt in attempts.items():
        rows = requests_of(server, attempt)
        assert 1 <= len(rows) < 50, name
        assert max(seconds(rows)) < 0.3
        summary = server.markers[attempt, RANK].summary
        assert summary["window_cut"] is True
        assert summary["prompt_tokens"] == sum(row["prompt_tokens"] for row in rows)
    assert server.markers[whole, RANK].summary["window_cut"] is False


# --- power and energy -------------------------------------------------------------------------------------------------


@pytest.mark.proves("record.power", "energy.sources", on="simulated")
async def test_power_is_recorded_or_not(server: FakeServer, work: Work) -> None:
    on = server.enqueue(**QUICK, simulated={"power_w": 42})
    off = server.enqueue(**QUICK, record={"power": False}, baseline={"min_s": 3600, "max_s": 3600})
    named = server.enqueue(**{**QUICK, "energy": {"sources": ["rapl"]}})
    await work(modules=REAL)
    assert {row["power_mw"] for row in server.rows(on, SAMPLER, StreamName.POWER)} == {42_000}
    for attempt in (off, named):
        assert attempt in server.completed
        assert server.rows(attempt, SAMPLER, StreamName.POWER) == []
    assert server.markers[off, SAMPLER].summary["sources"] == []
    [source] = server.markers[named, SAMPLER].summary["sources"]  # type: ignore[misc,str-unpack]
    assert source["name"] == "rapl"  # type: ignore[index,call-overload]


@pytest.mark.proves("energy.interval_ms", on="simulated")
async def test_power_is_sampled_as_often_as_asked(server: FakeServer, work: Work) -> None:
    attempts = {ms: server.enqueue(**{**QUICK, "energy": {"interval_ms": ms}}) for ms in (10, 200)}
    await work(modules=REAL)
    for ms, attempt in attempts.items():
        assert server.markers[attempt, SAMPLER].summary["interval_ns"] == ms * 1_000_000
        times = [row["time_ns"] for row in server.rows(attempt, SAMPLER, StreamName.POWER)]
        gaps = sorted(after - before for before, after in itertools.pairwise(times))
        assert gaps[len(gaps) // 2] >= ms * 0.9e6


@pytest.mark.proves("energy.required", "baseline.required", "baseline.enabled", on="simulated")
async def test_what_is_required_and_can_not_be_had_fails_the_run(server: FakeServer, work: Work) -> None:
    no_power = {"sources": ["rapl"], "interval_ms": 10}
    baseline = {"enabled": True, "min_s": 1, "max_s": 1}
    energy = server.enqueue(**{**QUICK, "energy": {**no_power, "required": True}})
    wanted = server.enqueue(**{**QUICK, "energy": no_power, "baseline": {**baseline, "required": True}})
    missed = server.enqueue(**{**QUICK, "energy": no_power, "baseline": baseline})
    taken = server.enqueue(**{**QUICK, "baseline": {**baseline, "required": True}})
    await work(modules=REAL)
    assert "energy.required is set" in server.ended[energy].message
    assert "baseline.required is set" in server.ended[wanted].message
    assert {missed, taken} <= server.completed.keys()


@pytest.mark.proves("simulated.power.shape", "simulated.power.peak_w", "simulated.power.period_s", on="simulated")
async def test_the_sampler_counts_the_exact_energy_of_a_ramp(server: FakeServer, work: Work) -> None:
    shape = {"shape": "ramp", "peak_w": 200, "period_s": 3600}
    attempt = server.enqueue(**QUICK, simulated={"power_w": 100, "power": shape, "decode_ms_per_token": 10})
    await work(modules=REAL)
    rows = server.rows(attempt, SAMPLER, StreamName.POWER)
    begin_ns = rows[0]["time_ns"]
    assert len(rows) > 10
    for row in rows:
        since = (row["time_ns"] - begin_ns) / 1e9
        exact = energy_j(100, SimulatedPower.model_validate(shape), since)
        # The source was opened a moment before its first sample.
        assert row["energy_mj"] / 1000 == pytest.approx(exact, abs=0.5)


# --- as requested -----------------------------------------------------------------------------------------------------


@pytest.mark.proves("allow", "simulated.misreport", on="simulated")
async def test_a_difference_ends_the_run_unless_it_is_allowed(server: FakeServer, work: Work) -> None:
    lies = {"simulated": {"misreport": ["batch_size", "num_processes"]}}
    refused = server.enqueue(**QUICK, **lies)
    half = server.enqueue(**QUICK, **lies, allow=["simulated.batch_size"])
    allowed = server.enqueue(**QUICK, **lies, allow=["simulated.batch_size", "simulated.num_processes"])
    await work(modules=REAL)
    assert server.ended[refused].reason is FailureReason.NOT_AS_REQUESTED
    assert "allow: [simulated.batch_size]" in server.ended[refused].message
    assert "simulated.num_processes was requested as 1" in server.ended[half].message
    assert allowed in server.completed
    [wrong] = [one for one in server.started[allowed].effective_config.parameters if one.name == "simulated.batch_size"]
    assert (wrong.requested, wrong.effective, wrong.confirmed) == (1, 2, False)


# --- the simulated backend's truth ------------------------------------------------------------------------------------


@pytest.mark.proves(
    "simulated.batch_size",
    "simulated.prefill_ms_per_token",
    "simulated.decode_ms_per_token",
    "simulated.jitter",
    "output.max_tokens",
    "decoding.seed",
    on="simulated",
)
async def test_latencies_are_those_of_the_configuration(server: FakeServer, work: Work) -> None:
    prompts = {"synthetic": {"prompt_tokens": 10, "count": 4}}
    truth = {"batch_size": 2, "prefill_ms_per_token": 1, "decode_ms_per_token": 20}
    steady = server.enqueue(**{**QUICK, "prompts": prompts, "simulated": truth})
    spread = {**truth, "jitter": 0.9}
    shaken = [
        server.enqueue(**{**QUICK, "prompts": prompts, "simulated": spread, "decoding": {"seed": seed}})
        for seed in (1, 2)
    ]
    await work(modules=REAL)
    rows = requests_of(server, steady)
    assert [row["batch_id"] for row in rows] == [0, 0, 1, 1]
    for row in rows:
        # Deadlines: a late wake-up makes a step later, never earlier.
        assert (row["first_token_ns"] - row["scheduled_ns"]) / 1e6 >= 20
        assert (row["last_token_ns"] - row["scheduled_ns"]) / 1e6 >= 20 + 3 * 20
    first = [requests_of(server, attempt)[0] for attempt in shaken]
    took = [row["last_token_ns"] - row["scheduled_ns"] for row in first]
    assert took[0] != took[1]


@pytest.mark.proves("simulated.load_s", "simulated.num_processes", on="simulated")
async def test_loading_takes_as_long_as_said_in_each_process(server: FakeServer, work: Work) -> None:
    attempt = server.enqueue(**QUICK, simulated={"load_s": 0.3, "num_processes": 2})
    await work(modules=REAL)
    for rank in ("rank-0", "rank-1"):
        edges = {
            row["edge"]: row["time_ns"]
            for row in server.rows(attempt, rank, StreamName.PHASES)
            if row["phase"] == "load"
        }
        assert edges["end"] - edges["begin"] >= 0.3e9


@pytest.mark.proves(
    "simulated.fail.at", "simulated.fail.how", "simulated.fail.process", "limits.silence_s", on="simulated"
)
@pytest.mark.parametrize(
    ("how", "reason", "says"),
    [
        ("raise", FailureReason.INFERENCE, "simulated engine failed in measure"),
        pytest.param("out_of_memory", FailureReason.OUT_OF_MEMORY, "out of memory", marks=pytest.mark.slow),
        pytest.param("exit", FailureReason.INFERENCE, "rank-1 ended with exit code 3", marks=pytest.mark.slow),
        ("kill", FailureReason.INFERENCE, "rank-1 was killed by SIGKILL"),
        pytest.param("abort", FailureReason.INFERENCE, "rank-1 was killed by SIGABRT", marks=pytest.mark.slow),
        pytest.param("segfault", FailureReason.INFERENCE, "rank-1 was killed by SIGSEGV", marks=pytest.mark.slow),
        pytest.param("hang", FailureReason.SILENT, "limits.silence_s", marks=pytest.mark.slow),
        ("silence", FailureReason.SILENT, "limits.silence_s"),
    ],
)
async def test_a_failure_happens_where_and_how_it_is_asked_for(
    server: FakeServer, work: Work, how: str, reason: FailureReason, says: str
) -> None:
    fail = {"at": "measure", "how": how, "process": 1}
    attempt = server.enqueue(**QUICK, simulated={"num_processes": 2, "fail": fail}, limits={"silence_s": 1})
    await work(modules=REAL)
    assert server.ended[attempt].reason is reason
    assert says in server.ended[attempt].message


async def test_a_dropped_chunk_is_in_the_marker_and_nowhere_else(server: FakeServer, work: Work) -> None:
    attempt = server.enqueue(**QUICK, model="loses-tokens")
    await work(modules=REAL._replace(rank="factories.rank_losing_chunk"))
    marker = server.markers[attempt, RANK]
    assert "tokens" in [one.stream.value for one in marker.streams]
    assert server.rows(attempt, RANK, StreamName.TOKENS) == []
    assert len(requests_of(server, attempt)) >= 4


@pytest.mark.proves("record.tokens", "record.outputs", "output.mode", "output.min_tokens", on="simulated")
async def test_what_is_generated_and_what_is_kept_of_it(server: FakeServer, work: Work) -> None:
    natural = {"mode": "natural", "max_tokens": 30, "min_tokens": 25}
    kept = server.enqueue(**{**QUICK, "record": {"outputs": True}, "output": natural})
    left = server.enqueue(**{**QUICK, "record": {"tokens": False}})
    await work(modules=REAL)
    generated = [row["generated_tokens"] for row in requests_of(server, kept)]
    assert 25 <= min(generated) <= max(generated) <= 30
    assert {row["generated_tokens"] for row in requests_of(server, left)} == {4}
    assert len(server.rows(kept, RANK, StreamName.TOKENS)) == math.fsum(generated)
    assert server.rows(left, RANK, StreamName.TOKENS) == []
    texts = [json.loads(row["detail"]) for row in server.rows(kept, RANK, StreamName.EVENTS) if row["kind"] == "output"]
    assert len(texts) == 4


@pytest.mark.proves("input.max_tokens", "input.truncate", on="simulated")
async def test_long_prompts_are_refused_or_cut(server: FakeServer, work: Work) -> None:
    server.datasets["4" * 64] = ("a b c d e f",)
    long: dict[str, Any] = {**QUICK, "prompts": {"dataset": "4" * 64}}
    refused = server.enqueue(**long, input={"max_tokens": 4})
    cut = server.enqueue(**long, input={"max_tokens": 4, "truncate": "left"})
    await work(modules=REAL)
    assert "input.max_tokens is 4" in server.ended[refused].message
    assert {row["prompt_tokens"] for row in requests_of(server, cut)} == {4}


# --- beside the window ------------------------------------------------------------------------------------------------


@pytest.mark.proves("prefill_probe", on="simulated")
async def test_the_probe_has_its_own_window(server: FakeServer, work: Work) -> None:
    prompts = {"synthetic": {"prompt_tokens": 10, "count": 4}}
    truth = {"num_processes": 2, "prefill_ms_per_token": 1, "decode_ms_per_token": 20}
    attempt = server.enqueue(**{**QUICK, "prompts": prompts}, prefill_probe=True, simulated=truth)
    await work(modules=REAL)
    for rank in ("rank-0", "rank-1"):
        rows = requests_of(server, attempt, rank)
        assert {row["generated_tokens"] for row in rows} == {4}
        probe = json.loads(json.dumps(server.markers[attempt, rank].summary["prefill_probe"]))
        assert (probe["requests"], probe["prompt_tokens"]) == (2, 20)
        assert max(row["last_token_ns"] for row in rows) <= probe["begin_ns"]
        assert (probe["end_ns"] - probe["begin_ns"]) / 1e6 >= 2 * 10


@pytest.mark.proves("carbon.country", on="codecarbon 3.3.2")
async def test_a_countrys_carbon_intensity_is_read_on_the_worker(server: FakeServer, work: Work) -> None:
    france = server.enqueue(**QUICK, carbon={"country": "FRA"})
    nowhere = server.enqueue(**QUICK, carbon={"country": "XXX"})
    own = server.enqueue(**QUICK, carbon={"gco2e_per_kwh": 1})
    await work(modules=REAL)
    told = {
        name: server.markers[attempt, SAMPLER].summary.get("carbon_intensity")
        for name, attempt in (("france", france), ("nowhere", nowhere), ("own", own))
    }
    assert told["own"] is None
    assert "has no XXX" in json.dumps(told["nowhere"])
    found = json.loads(json.dumps(told["france"]))
    assert 0 < found["gco2e_per_kwh"] < 200
    assert "France" in found["source"]
