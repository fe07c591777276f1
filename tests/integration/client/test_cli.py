"""`lemctl` and the Python client against the real application over a real PostgreSQL."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import TypeVar

import pytest
from sqlalchemy.engine import URL
from sqlalchemy.ext.asyncio import AsyncEngine

from factories.runs import claim, complete, move, result_json, set_progress, store_aggregate
from factories.served import CAMPAIGN, Lem, by_sql, submitted
from fakes.nvml.library import SimulatedNvml, built
from fakes.nvml.profiles import PROFILES
from lem_client import AsyncClient, Client
from lem_client.errors import NotFound
from lem_domain.results.method import MethodVersion
from lem_domain.states import RunState
from lem_domain.wire.events import CampaignEvent, RunProgressEvent, RunTransitionEvent
from lem_server.access.service import OWNER_TOKEN_FILE

T = TypeVar("T")

BUSY = {"phase": "measure", "requests_done": 3, "generated_tokens": 9}


# --- plan and submit --------------------------------------------------------------------------------------------------


def test_a_plan_shows_the_runs_in_order_and_queues_nothing(lem: Lem) -> None:
    answer = lem("plan", lem.file())
    assert answer.code == 0, answer.err
    assert answer.out.startswith("night: 2 experiments, 4 runs, at least 40 s of measuring")
    assert "note: No registered worker serves backend 'simulated'" in answer.out
    assert [line.split()[:3] for line in answer.out.splitlines() if "batch_size=" in line] == [
        ["1", "batch_size=1", "1"],
        ["2", "batch_size=8", "1"],
        ["3", "batch_size=1", "2"],
        ["4", "batch_size=8", "2"],
    ]
    assert lem("list", "--json").json == []


def test_a_plan_as_json_is_the_servers(lem: Lem) -> None:
    plan = lem("plan", lem.file(), "--json", "--set", "execution.cycles=1").json
    assert (len(plan["runs"]), plan["minimum_duration_s"]) == (2, 20)


def test_a_plan_without_a_server_says_so(lem: Lem, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lem_domain.retries.RetryPolicy.delay_s", lambda *_: 0.0)
    answer = lem("plan", lem.file(), "--server", "http://127.0.0.1:9")
    assert answer.code == 0
    assert "night: 2 experiments, 4 runs" in answer.out
    assert "note: Planned without a server" in answer.out


def test_submitting_prints_the_id_and_says_that_no_worker_will_run_it(lem: Lem) -> None:
    answer = lem("submit", lem.file(), "--name", "other")
    assert answer.code == 0
    campaign = answer.out.split()[0]
    assert campaign.startswith("cmp_")
    assert answer.err.startswith("note: no simulated worker is online; the runs wait until one is started")
    (listed,) = lem("list", "--json").json
    assert (listed["id"], listed["name"], listed["runs"]["queued"]) == (campaign, "other", 4)
    assert campaign in lem("list").out


def test_campaigns_are_found_by_their_labels(lem: Lem) -> None:
    file = lem.file(CAMPAIGN)
    for team in ("a", "b"):
        assert lem("submit", file, "--name", team, "--set", f"labels.team={team}").code == 0
    assert [one["name"] for one in lem("list", "--label", "team=b", "--json").json] == ["b"]
    assert lem("list", "--label", "team=b", "--label", "x=y", "--json").json == []
    assert "`lemctl list`" in lem("list", "--label", "team=c").out
    answer = lem("list", "--label", "team")
    assert (answer.code, answer.err) == (
        2,
        "error: --label team: write it as KEY=VALUE, for example team=nlp.\n",
    )


def test_prompt_files_are_uploaded_once(lem: Lem, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("one\ntwo\n")
    file = lem.file(CAMPAIGN + "prompts: {file: p.txt}\n")
    assert lem("submit", file).code == 0
    assert lem("submit", file).code == 0
    (uploaded,) = (one for one in lem("datasets", "--json").json if not one["builtin"])
    assert (uploaded["name"], uploaded["prompts"]) == ("p.txt", 2)
    assert uploaded["sha256"] in lem("datasets").out


def test_what_only_the_server_can_refuse_names_the_line_too(lem: Lem) -> None:
    file = lem.file(CAMPAIGN + f"prompts:\n  dataset: {'a' * 64}\n")
    for command in ("plan", "submit"):
        answer = lem(command, file)
        assert answer.code == 2
        assert answer.err.startswith(f"error: {file}:6: prompts.dataset: the server holds no dataset aaa")
        assert answer.err.count("\n") == 1
    assert lem("list", "--json").json == []


def test_a_wrong_file_leaves_nothing_behind(lem: Lem) -> None:
    answer = lem("run", lem.file(CAMPAIGN + "outptu: {}\n"))
    assert answer.code == 2
    assert answer.err.endswith("night.yaml:5: outptu: unknown key 'outptu'; did you mean 'output'?\n")
    assert lem("list", "--json").json == []


# --- access -----------------------------------------------------------------------------------------------------------


def test_a_wrong_token_is_one_sentence(lem: Lem, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEM_TOKEN", "nonsense")
    answer = lem("list")
    assert answer.code == 1
    assert answer.err.startswith("error: the token is mistyped")
    assert answer.err.count("\n") == 1


def test_no_token_is_one_sentence_too(lem: Lem, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LEM_DATA_DIR", str(tmp_path / "elsewhere"))
    answer = lem("list")
    assert (answer.code, answer.err.count("\n")) == (1, 1)
    assert "--token-file" in answer.err


def test_the_token_may_come_from_a_file(lem: Lem, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = Path(tmp_path / "data" / OWNER_TOKEN_FILE)
    monkeypatch.setenv("LEM_DATA_DIR", str(tmp_path / "elsewhere"))
    assert lem("list", "--token-file", str(file)).code == 0


# --- show, cancel, results --------------------------------------------------------------------------------------------


def test_a_campaign_is_shown_by_id_and_by_name(lem: Lem) -> None:
    campaign, runs = submitted(lem)
    by_id = lem("show", campaign)
    assert by_id.code == 0
    assert lem("show", "night").out == by_id.out
    assert all(run in by_id.out for run in runs)
    shown = lem("show", "night", "--json").json
    assert [run["id"] for run in shown["runs"]] == runs
    assert [one["varied"] for one in shown["experiments"]] == [{"simulated.batch_size": 1}, {"simulated.batch_size": 8}]
    experiment = lem("show", shown["experiments"][0]["id"])
    assert "simulated.batch_size" in experiment.out


@pytest.mark.parametrize("what", ["nobody", f"run_{'0' * 32}", f"exp_{'0' * 32}", f"wrk_{'0' * 32}", f"att_{'0' * 32}"])
def test_what_is_not_there_is_one_sentence(lem: Lem, what: str) -> None:
    answer = lem("show", what)
    assert (answer.code, answer.out, answer.err.count("\n")) == (1, "", 1)


def test_a_run_is_shown_with_its_history_and_every_figure_in_words(lem: Lem, database_url: URL) -> None:
    _, (first, second, third, _) = submitted(lem)

    async def live(engine: AsyncEngine) -> str:
        attempt = await complete(engine, first)
        await store_aggregate(engine, first, attempt, result_json())
        await claim(engine, second)
        await move(engine, second, "failed", reason="out_of_memory", message="lower the batch size")
        return attempt

    attempt = by_sql(database_url, live)
    shown = lem("show", first).out
    for words in ("queued", "initialised", "running", "completed", "aggregated", attempt, "verdict"):
        assert words in shown
    for figure in ("per output token", "per prompt token", "tokens per joule", "energy × delay", "with prompt tokens"):
        assert figure in shown
    for figure in ("TTFT", "ITL", "TPOT", "E2E", "queue", "mean power", "net", "prefill", "decode"):
        assert figure in shown
    assert f"/api/v1/attempts/{attempt}/streams" in shown
    assert lem("show", first, "--json").json["result"]["verdict"] in ("valid", "questionable")
    assert "out_of_memory – lower the batch size" in lem("show", second).out
    assert "none: the run is queued" in lem("show", third).out
    assert attempt in lem("show", attempt).out
    (worker, *_) = lem("workers", "--json").json
    assert worker["name"] in lem("show", worker["id"]).out
    assert worker["id"] in lem("workers").out


def test_cancelling_by_name_cancels_what_is_queued(lem: Lem) -> None:
    campaign, runs = submitted(lem)
    assert lem("cancel", runs[0]).out == f"{runs[0]} is cancelled\n"
    assert lem("cancel", "night").out == f"night ({campaign}) is cancelled: 4 cancelled\n"
    assert lem("cancel", campaign, "--json").json["state"] == "cancelled"


def test_results_before_anything_ran_are_dashes_with_their_reasons(lem: Lem) -> None:
    campaign, _ = submitted(lem)
    answer = lem("results", campaign)
    assert answer.code == 0
    assert "0 of 2" in answer.out
    assert "– batch_size=1: cycles 1–2: no result, queued" in answer.out
    assert lem("results", "night", "--json").json["runs"]["queued"] == 4
    assert lem("results", "night", "--format", "json").json["campaign_id"] == campaign
    assert lem("results", "night", "--format", "markdown").out.startswith("### night\n")


def test_results_are_mean_and_spread_with_their_method(lem: Lem, database_url: URL) -> None:
    _, runs = submitted(lem)

    async def measure(engine: AsyncEngine) -> None:
        for run, watts in zip(runs, (100, 20, 110, 20), strict=True):
            await store_aggregate(engine, run, await complete(engine, run), result_json(watts))

    by_sql(database_url, measure)
    answer = lem("results", "night")
    assert answer.code == 0
    (row,) = (line for line in answer.out.splitlines() if "batch_size=1 " in line)
    assert "±" in row
    assert "2" in row.split()
    lines = lem("results", "night", "--format", "csv").out.splitlines()
    assert lines[0].startswith("experiment_id,experiment,verdict,energy_method")
    assert len(lines) > 10


def test_results_by_an_older_method_are_named(lem: Lem, database_url: URL) -> None:
    campaign, runs = submitted(lem)

    async def measure(engine: AsyncEngine) -> None:
        await store_aggregate(engine, runs[0], await complete(engine, runs[0]), result_json(method=MethodVersion.M1))

    by_sql(database_url, measure)
    (first, *_) = lem("results", campaign, "--format", "json", "--method", "m1").json["experiments"]
    assert first["method"] == "m1"
    assert "method m1, not m2" in lem("results", campaign).out
    assert "(method m1)" in lem("show", runs[0], "--method", "m1").out
    assert (
        f"none by method m2; run `lemctl results {campaign} --method m2`" in lem("show", runs[0], "--method", "m2").out
    )


def test_a_run_that_cannot_be_aggregated_is_named_and_fails_the_command(lem: Lem, database_url: URL) -> None:
    _, runs = submitted(lem)
    by_sql(database_url, lambda engine: complete(engine, runs[0]))
    answer = lem("results", "night")
    assert answer.code == 1
    assert answer.err.startswith(f"error: {runs[0]}: ")
    assert answer.err.count("\n") == 1


# --- watch ------------------------------------------------------------------------------------------------------------


def test_watching_a_settled_campaign_shows_its_history_and_its_results(lem: Lem, database_url: URL) -> None:
    campaign, runs = submitted(lem)

    async def measure(engine: AsyncEngine) -> None:
        for run in runs[:3]:
            await store_aggregate(engine, run, await complete(engine, run), result_json())
        await claim(engine, runs[3])
        await move(engine, runs[3], "failed", reason="out_of_memory", message="lower the batch size")

    by_sql(database_url, measure)
    answer = lem("watch", "night")
    assert answer.code == 1
    assert answer.out.startswith(f"night: {campaign}, 4 runs\n")
    assert "batch_size=8, cycle 2: failed (was initialised): out_of_memory – lower the batch size" in answer.out
    assert "\x1b" not in answer.out
    lines = [json.loads(line) for line in lem("watch", "night", "--json").out.splitlines()]
    assert [line["type"] for line in lines][:1] == ["campaign"]
    assert lines[-1]["type"] == "results"
    assert sum(line["type"] == "transition" for line in lines) == 4 + 3 * 4 + 2
    quiet = lem("watch", "night", "--quiet").out
    assert "cycle 2: failed" not in quiet.split("–")[0]


def test_ctrl_c_leaves_the_campaign_running_and_says_how_to_come_back(lem: Lem) -> None:
    campaign, _ = submitted(lem)
    watching = subprocess.Popen(
        [sys.executable, "-m", "lem_client.cli.main", "watch", campaign],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert watching.stdout is not None
    assert watching.stdout.readline().startswith("night: ")
    watching.send_signal(signal.SIGINT)
    _, told = watching.communicate(timeout=300)
    assert watching.returncode == 130
    assert f"lemctl watch {campaign}" in told
    assert f"lemctl cancel {campaign}" in told
    assert lem("show", campaign, "--json").json["campaign"]["state"] == "active"


# --- the rest ---------------------------------------------------------------------------------------------------------


def test_the_doctor_looks_at_the_server(lem: Lem) -> None:
    answer = lem("doctor", "--json")
    assert answer.code == 0
    grades = {check["name"]: check["grade"] for check in answer.json}
    assert (grades["token"], grades["workers"]) == ("ok", "warn")
    assert "ok    token" in lem("doctor").out


def test_the_doctor_says_what_measures_each_gpu_of_this_machine(
    lem: Lem, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvml = SimulatedNvml(built(tmp_path_factory.getbasetemp().parent), tmp_path / "nvml.state")
    uuids = [f"GPU-{number:08d}-0000-0000-0000-000000000000" for number in range(8)]
    chip = PROFILES["H100"]
    nvml.write(*(line for number, uuid in enumerate(uuids) for line in chip.lines(number, uuid, "constant 300")))
    for name in ("LD_LIBRARY_PATH", "LEM_FAKE_NVML"):
        monkeypatch.setenv(name, nvml.environment()[name])
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    [energy] = [check for check in lem("doctor", "--json").json if check["name"] == "energy"]
    assert energy["grade"] == "ok"
    assert all(f"{uuid}: nvml: measured: 300.0 W, energy counter at " in energy["says"] for uuid in uuids)


def test_the_doctor_fails_without_a_server(lem: Lem, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lem_domain.retries.RetryPolicy.delay_s", lambda *_: 0.0)
    answer = lem("doctor", "--server", "http://127.0.0.1:9")
    assert answer.code == 1
    assert "fail  server       no LEM server answers" in answer.out


def test_config_show_gives_every_setting_without_a_server(lem: Lem) -> None:
    answer = lem("config", "show", lem.file(), "--json", "--server", "http://127.0.0.1:9")
    configs = [one["config"] for one in answer.json["experiments"]]
    assert [one["simulated"]["batch_size"] for one in configs] == [1, 8]
    assert configs[0]["energy"]["interval_ms"] == 50
    assert "interval_ms: 50" in lem("config", "show", lem.file()).out


# --- the Python client ------------------------------------------------------------------------------------------------


def test_the_python_client_follows_a_run_as_it_happens(lem: Lem, database_url: URL) -> None:
    _, runs = submitted(lem)
    run = runs[0]
    seen: list[RunState] = []
    told = False
    with Client() as client:
        for event in client.follow_run(run):
            if isinstance(event, RunTransitionEvent):
                seen.append(event.target)
                if event.target is RunState.QUEUED:
                    by_sql(database_url, lambda engine: claim(engine, run))
                elif event.target is RunState.INITIALISED:
                    by_sql(database_url, lambda engine: move(engine, run, "running"))
                elif event.target is RunState.RUNNING:
                    by_sql(database_url, lambda engine: set_progress(engine, run, BUSY))
            elif isinstance(event, RunProgressEvent) and not told:
                told = event.progress.requests_done == 3
                by_sql(database_url, lambda engine: move(engine, run, "failed", reason="inference"))
        assert client.run(run).state is RunState.FAILED
    assert told
    assert [state.value for state in seen] == ["queued", "initialised", "running", "failed"]


def test_the_asynchronous_client_does_the_same(lem: Lem, database_url: URL) -> None:
    campaign, runs = submitted(lem)

    async def look() -> None:
        async with AsyncClient() as client:
            assert await client.is_ready()
            assert [run.id async for run in client.runs(campaign_id=campaign)] == runs
            assert (await client.cancel_campaign(campaign)).runs.cancelled == 4
            events = [event async for event in client.follow_campaign(campaign)]
            assert isinstance(events[-1], CampaignEvent)
            assert events[-1].settled
            assert (await client.results(campaign)).runs.cancelled == 4
            with pytest.raises(NotFound):
                await client.result(runs[0])

    asyncio.run(look())
