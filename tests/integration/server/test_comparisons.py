"""`POST /comparisons`: experiments are found, matched and compared by their stored results."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from factories.runs import complete, result_json, run_ids, store_aggregate, submit
from lem_domain.wire.decisions import Comparison, Gate

pytestmark = pytest.mark.anyio

SWEEP = {"output.max_tokens": [8, 16]}
WATTS = ((100.0, 101.0, 99.0), (80.0, 81.0, 79.5))


async def measured(api: httpx.AsyncClient, engine: AsyncEngine, cycles: int = 3, **keys: Any) -> dict[str, Any]:
    """A campaign of two experiments of 100 and 80 W; all runs of `cycles` cycles are aggregated."""
    keys = {"sweep": SWEEP, **keys}
    view = await submit(api, execution={"cycles": 3}, **keys)
    runs = (await api.get("/api/v1/runs", params={"campaign_id": view["id"], "limit": 500})).json()["items"]
    for run in runs:
        if run["cycle"] <= cycles:
            second = run["display_name"].endswith("16")
            attempt = await complete(engine, run["id"])
            await store_aggregate(engine, run["id"], attempt, result_json(WATTS[second][run["cycle"] - 1]))
    return view


async def compared(api: httpx.AsyncClient, **request: Any) -> Comparison:
    answer = await api.post("/api/v1/comparisons", json=request)
    assert answer.status_code == 200, answer.text
    return Comparison.model_validate_json(answer.content)


async def refused(api: httpx.AsyncClient, **request: Any) -> tuple[int, str]:
    answer = await api.post("/api/v1/comparisons", json=request)
    return answer.status_code, answer.json()["detail"]


async def test_experiments_of_campaigns_are_compared(api: httpx.AsyncClient, engine: AsyncEngine) -> None:
    first = await measured(api, engine)
    second = await measured(api, engine, cycles=2)

    found = await compared(api, reference=first["id"], metrics=["energy_per_output_token_j", "mean_power_w"])
    (pair,) = found.comparisons
    assert [(one.path, one.reference, one.candidate) for one in pair.differences] == [("output.max_tokens", 8, 16)]
    energy, power = pair.metrics
    assert (energy.design, energy.pairs, energy.word) == ("paired", 3, "better")
    assert energy.estimate == pytest.approx(0.8, rel=0.01)
    assert energy.systematic is not None
    assert energy.systematic.same_sensor
    assert (power.word, found.tests) == ("different", 2)

    across = await compared(api, reference=first["id"], candidate=second["id"], metrics=["energy_per_output_token_j"])
    assert [one.reference.display_name for one in across.comparisons] == [
        one.candidate.display_name for one in across.comparisons
    ]
    assert {one.metrics[0].word.value for one in across.comparisons} == {"not_enough_evidence"}
    assert {finding.code.value for one in across.comparisons for finding in one.findings} >= {"unfinished"}

    experiments = (await api.get(f"/api/v1/campaigns/{first['id']}/experiments")).json()["items"]
    ids = {one["display_name"][-2:]: one["id"] for one in experiments}
    turned = await compared(
        api, reference=ids["16"], candidate=ids["=8"], metrics=["energy_per_output_token_j"], margin=0.5
    )
    assert turned.comparisons[0].metrics[0].word == "equivalent"

    gated = {"reference": ids["=8"], "candidate": ids["16"]}
    limits = [{"metric": "energy_per_output_token_j", "max_regression": 0.03}]
    for request, outcome in (
        (gated, "passed"),
        ({"reference": ids["16"], "candidate": ids["=8"]}, "regressed"),
        ({"reference": first["id"], "candidate": second["id"]}, "not_enough_evidence"),
    ):
        answer = await api.post("/api/v1/gates", json={**request, "limits": limits})
        assert answer.status_code == 200, answer.text
        assert Gate.model_validate_json(answer.content).outcome == outcome
    assert (await api.post("/api/v1/gates", json={**gated, "limits": limits * 2})).status_code == 422

    nothing = await submit(api, sweep={"output.max_tokens": [32, 64]})
    status, detail = await refused(api, reference=first["id"], candidate=nothing["id"])
    assert status == 409
    assert "no experiment with this configuration" in detail
    status, detail = await refused(api, reference=first["id"], metrics=["no_such_metric"])
    assert status == 422
    assert "no_such_metric" in detail
    assert (await refused(api, reference=f"cmp_{'0' * 32}"))[0] == 404
    assert (await refused(api, reference=f"exp_{'0' * 32}"))[0] == 404
    pairs = [{"reference": ids["16"], "candidate": ids["=8"]}]
    assert (await refused(api, reference=second["id"], candidate=first["id"], pairs=pairs))[0] == 422


async def test_one_experiment_alone_has_nothing_to_compare(api: httpx.AsyncClient) -> None:
    view = await submit(api)
    status, detail = await refused(api, reference=view["id"])
    assert status == 409
    assert "one experiment" in detail
    assert len(await run_ids(api, view)) == 1
