"""Everything that the client can do, done from the OpenAPI document alone: no code of the client is used."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pyarrow as pa


class Generic:
    """Calls operations by their ids, knowing nothing but the document."""

    def __init__(self, url: str, token: str) -> None:
        self._http = httpx.Client(base_url=url, timeout=60)
        document = self._http.get("/openapi.json").json()
        self._operations: dict[str, tuple[str, str, dict[str, Any]]] = {
            operation["operationId"]: (method, path, operation)
            for path, methods in document["paths"].items()
            for method, operation in methods.items()
        }
        schemes = document["components"]["securitySchemes"]
        assert {scheme["scheme"] for scheme in schemes.values()} == {"bearer"}
        self._http.headers["Authorization"] = f"Bearer {token}"

    def call(self, operation_id: str, body: object = None, **parameters: object) -> httpx.Response:
        """Fill the path, put what is left into the query, and check that the answer is a documented one."""
        method, path, operation = self._operations[operation_id]
        declared = {one["name"]: one["in"] for one in operation.get("parameters", ())}
        assert set(parameters) <= set(declared), f"{operation_id} takes {declared}"
        in_path = {name: value for name, value in parameters.items() if declared[name] == "path"}
        query = {name: value for name, value in parameters.items() if declared[name] == "query"}
        answer = self._http.request(method, path.format(**in_path), params=query, json=body)
        assert str(answer.status_code) in operation["responses"], f"{operation_id} answered {answer.status_code}"
        return answer

    def stream(self, operation_id: str, **in_path: object) -> list[dict[str, Any]]:
        """The events of a stream, until the server ends it."""
        method, path, _ = self._operations[operation_id]
        with self._http.stream(method, path.format(**in_path), timeout=120) as answer:
            lines = list(answer.iter_lines())
        return [json.loads(line.removeprefix("data:")) for line in lines if line.startswith("data:")]


def test_submit_follow_and_read_with_the_document_alone(house) -> None:  # type: ignore[no-untyped-def]
    house.start_worker("simulated")
    api = Generic(house.url, house.token_file.read_text().strip())
    spec = {
        "name": "generic",
        "experiment": {
            "backend": "simulated",
            "model": {"id": "m"},
            "prompts": {"sample_size": 4},
            "output": {"max_tokens": 8},
            "window": {"min_duration_s": 1},
            "warmup": {"max_requests": 5},
            "simulated": {"power_w": 50},
        },
        "sweep": {"simulated.batch_size": [1, 2]},
    }
    plan = api.call("plan_campaign", spec).json()
    assert len(plan["runs"]) == 2
    campaign = api.call("submit_campaign", spec).json()
    events = api.stream("campaign_events", campaign_id=campaign["id"])
    assert events[-1]["settled"] is True
    assert {event["target"] for event in events if event["type"] == "transition"} >= {"queued", "running", "completed"}
    runs = api.call("list_runs", campaign_id=campaign["id"]).json()["items"]
    for run in runs:
        result = api.call("aggregate_run", run_id=run["id"]).json()
        assert (
            result["energy"]["mean_power_w"]["value"] == 50.0 or abs(result["energy"]["mean_power_w"]["value"] - 50) < 1
        )
        assert api.call("get_aggregate", run_id=run["id"]).json() == result
        [attempt] = api.call("list_run_attempts", run_id=run["id"]).json()["items"]
        assert attempt["effective_config"]["parameters"]
        for stream in api.call("list_streams", attempt_id=attempt["id"]).json()["items"]:
            for chunk in stream["chunks"]:
                raw = api.call(
                    "get_chunk",
                    attempt_id=attempt["id"],
                    process=stream["process"],
                    stream=stream["stream"],
                    seq=chunk["seq"],
                )
                assert pa.ipc.open_stream(raw.content).read_all().num_rows == chunk["rows"]
    results = api.call("get_campaign_results", campaign_id=campaign["id"]).json()
    assert [len(experiment["outcomes"]) for experiment in results["experiments"]] == [1, 1]
    assert {experiment["energy_method"] for experiment in results["experiments"]} == {"counter"}
    assert api.call("cancel_campaign", campaign_id=campaign["id"]).status_code == 200
    assert api.call("get_campaign", campaign_id=campaign["id"]).json()["state"] == "completed"
