"""Everything can be done with nothing but `openapi.json`: no client library, no address but those that it names."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pyarrow as pa
import pytest

DOCUMENT = json.loads((Path(__file__).parents[2] / "docs/reference/openapi.json").read_text())
BIN = Path(sys.executable).parent


class Operation(NamedTuple):
    """An operation as the document tells it."""

    method: str
    path: str
    parameters: dict[str, str]
    body: str | None
    statuses: frozenset[int]


OPERATIONS = {
    operation["operationId"]: Operation(
        method.upper(),
        path,
        {one["name"]: one["in"] for one in operation.get("parameters", ())},
        next(iter(operation.get("requestBody", {}).get("content", {})), None),
        frozenset(map(int, operation["responses"])),
    )
    for path, methods in DOCUMENT["paths"].items()
    for method, operation in methods.items()
}


class Caller:
    """Calls operations by their id; knows of the service only what the document says."""

    def __init__(self, http: httpx.Client) -> None:
        self._http = http

    def request(self, name: str, body: Any = None, **arguments: Any) -> httpx.Request:
        operation = OPERATIONS[name]
        path = operation.path
        sent: dict[str, dict[str, str]] = {"query": {}, "header": {}}
        for parameter, value in arguments.items():
            place = operation.parameters[parameter]
            if place == "path":
                path = path.replace(f"{{{parameter}}}", str(value))
            else:
                sent[place][parameter] = str(value)
        assert "{" not in path, f"{name} needs {re.findall(r'{(.+?)}', path)}"
        content = None
        if body is not None:
            assert operation.body is not None
            sent["header"]["Content-Type"] = operation.body
            content = json.dumps(body)
        return self._http.build_request(
            operation.method, path, params=sent["query"], headers=sent["header"], content=content
        )

    def __call__(self, name: str, body: Any = None, **arguments: Any) -> httpx.Response:
        answer = self._http.send(self.request(name, body, **arguments))
        assert answer.status_code in OPERATIONS[name].statuses, f"{name} answered {answer.status_code}: {answer.text}"
        return answer

    def get(self, name: str, body: Any = None, **arguments: Any) -> Any:
        """The JSON of a success."""
        answer = self(name, body, **arguments)
        assert answer.is_success, answer.text
        return answer.json()

    def all(self, name: str, **arguments: Any) -> list[Any]:
        """The items of all pages."""
        items: list[Any] = []
        cursor: dict[str, Any] = {}
        while True:
            page = self.get(name, **arguments, **cursor)
            items += page["items"]
            if not page.get("next"):
                return items
            cursor = {"cursor": page["next"]}

    def events(self, name: str, **arguments: Any) -> Iterator[tuple[str, Any]]:
        """Kind and data of every event, until the server ends the stream."""
        answer = self._http.send(self.request(name, **arguments), stream=True)
        try:
            assert answer.headers["content-type"].startswith("text/event-stream")
            event: dict[str, str] = {}
            for line in answer.iter_lines():
                if not line and "data" in event:
                    yield event.get("event", "message"), json.loads(event["data"])
                if not line:
                    event = {}
                elif not line.startswith(":"):
                    key, _, value = line.partition(":")
                    event[key] = value.removeprefix(" ")
        finally:
            answer.close()


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """For processes of the test's own."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("LEM_")}
    return {**kept, "LEM_DATA_DIR": str(tmp_path / "data"), "OMP_NUM_THREADS": "1"}


@pytest.fixture
def call(tmp_path: Path, environment: dict[str, str]) -> Iterator[Caller]:
    """A caller of a real server."""
    with (tmp_path / "server.log").open("ab") as log:
        server = subprocess.Popen(
            [BIN / "lem-server", "serve", "--port", "0"], env=environment, stdout=subprocess.PIPE, stderr=log, text=True
        )
    try:
        assert server.stdout is not None
        ready = re.search(r"http://\S+", server.stdout.readline())
        assert ready, (tmp_path / "server.log").read_text()
        token = (tmp_path / "data" / "owner.token").read_text().strip()
        with httpx.Client(base_url=ready[0], headers={"Authorization": f"Bearer {token}"}, timeout=60) as http:
            yield Caller(http)
    finally:
        server.send_signal(signal.SIGTERM)
        try:
            server.wait(600)
        finally:
            server.kill()
            note = tmp_path / "data" / "postgres" / "postmaster.pid"
            if note.exists():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(note.read_text().split("\n", 1)[0]), signal.SIGQUIT)


def test_a_campaign_from_its_plan_to_its_evidence(call: Caller, tmp_path: Path, environment: dict[str, str]) -> None:
    assert call._http.get("/openapi.json").json() == DOCUMENT
    assert {one["scheme"] for one in DOCUMENT["components"]["securitySchemes"].values()} == {"bearer"}
    version = call.get("get_version")
    assert version["version"] == DOCUMENT["info"]["version"]
    campaign = {
        "name": "by the document",
        "experiment": {
            "backend": "simulated",
            "model": "m",
            "prompts": {"sample_size": 4},
            "output": {"max_tokens": 8},
            "baseline": {"enabled": False},
            "window": {"min_duration_s": 1},
            "warmup": {"max_requests": 5, "power_slope": None},
            "simulated": {"power_w": 50},
        },
        "execution": {"cycles": 2},
    }
    plan = call.get("plan_campaign", campaign)
    assert (len(plan["experiments"]), len(plan["runs"])) == (1, 2)
    submitted = call.get("submit_campaign", campaign, **{"Idempotency-Key": "once"})
    assert call.get("submit_campaign", campaign, **{"Idempotency-Key": "once"}) == submitted

    with (tmp_path / "worker.log").open("ab") as log:
        worker = subprocess.Popen(
            [BIN / "lem-worker", "run", "--backend", "simulated", "--until-idle", "--server", str(call._http.base_url)],
            env=environment,
            stderr=log,
        )
    try:
        told = list(call.events("campaign_events", campaign_id=submitted["id"]))
        assert worker.wait(600) == 0, (tmp_path / "worker.log").read_text()
    finally:
        if worker.poll() is None:
            worker.kill()
            worker.wait()
    assert {kind for kind, _ in told} <= {"campaign", "transition", "progress"}
    ended = [data["run_id"] for kind, data in told if kind == "transition" and data["target"] == "completed"]
    assert len(set(ended)) == 2
    assert [data["settled"] for kind, data in told if kind == "campaign"][-1], (
        "the stream ends when nothing more will happen"
    )

    runs = call.all("list_runs", campaign_id=submitted["id"], limit=1)
    assert [run["state"] for run in runs] == ["completed"] * 2, (tmp_path / "worker.log").read_text()
    for run in runs:
        result = call.get("aggregate_run", run_id=run["id"])
        assert call.get("get_aggregate", run_id=run["id"]) == result
        assert result["work"]["generated_tokens"] == result["work"]["requests"] * 8 > 0
        assert result["energy"]["mean_power_w"]["value"] == pytest.approx(50, abs=1)
        per_token = result["efficiency"]["energy_per_output_token_j"]["value"]
        assert per_token == pytest.approx(result["energy"]["total"]["joules"] / result["work"]["generated_tokens"])
        assert [entry["target"] for entry in call.all("list_run_transitions", run_id=run["id"])] == [
            "queued",
            "initialised",
            "running",
            "completed",
            "aggregated",
        ]
        [attempt] = call.all("list_run_attempts", run_id=run["id"])
        assert attempt["effective_config"]["parameters"]
        assert evidence_of(call, attempt["id"]) > 0

    table = call.get("get_campaign_results", campaign_id=submitted["id"])
    [experiment] = table["experiments"]
    assert [one["state"] for one in experiment["outcomes"]] == ["aggregated"] * 2
    assert experiment["energy_method"] == "counter"
    call.get("cancel_campaign", campaign_id=submitted["id"])
    assert call.get("get_campaign", campaign_id=submitted["id"])["state"] == "completed", "what is done stays done"


def evidence_of(call: Caller, attempt: str) -> int:
    """Read every raw chunk and compare it with its digest; how many there are."""
    chunks = 0
    for stream in call.get("list_streams", attempt_id=attempt)["items"]:
        for chunk in stream["chunks"]:
            answer = call(
                "get_chunk", attempt_id=attempt, process=stream["process"], stream=stream["stream"], seq=chunk["seq"]
            )
            assert answer.headers["content-type"] == "application/vnd.apache.arrow.stream"
            assert hashlib.sha256(answer.content).hexdigest() == chunk["sha256"]
            assert pa.ipc.open_stream(answer.content).read_all().num_rows == chunk["rows"]
            chunks += 1
    return chunks


def test_a_refusal_is_what_the_document_says(call: Caller) -> None:
    answer = call("get_run", run_id=f"run_{'0' * 32}")
    assert answer.status_code == 404
    required = set(DOCUMENT["components"]["schemas"]["Problem"]["required"])
    assert required <= set(answer.json())
    assert set(answer.json()) <= set(DOCUMENT["components"]["schemas"]["Problem"]["properties"])
