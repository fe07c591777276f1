"""What can be configured, over HTTP; and where an experiment's values came from."""

from __future__ import annotations

import httpx
import pytest

from factories.runs import run_ids, submit
from factories.worker import FakeWorker
from lem_domain.backends.registry import BackendName
from lem_domain.config.schema import campaign_file_schema, campaign_keys, experiment_keys

pytestmark = pytest.mark.anyio


async def test_the_schema_is_the_models(api: httpx.AsyncClient) -> None:
    assert (await api.get("/api/v1/schema/campaign")).json() == campaign_file_schema()
    told = (await api.get("/api/v1/schema")).json()
    assert [key["path"] for key in told["experiment"]] == [key.path for key in experiment_keys()]
    assert [key["path"] for key in told["campaign"]] == [key.path for key in campaign_keys()]
    (power,) = (key for key in told["experiment"] if key["path"] == "simulated.power_w")
    assert (power["unit"], power["constraint"], power["default"]) == ("W", "≥ 0, ≤ 10000", 100.0)
    assert "quick" in {one["name"] for one in told["presets"]}


async def test_backends_are_listed_with_their_keys_and_online_workers(api: httpx.AsyncClient) -> None:
    await FakeWorker(api).ready()
    gone = await FakeWorker(api).ready()
    await gone.sign_off()
    told = {one["name"]: one for one in (await api.get("/api/v1/backends")).json()}
    assert set(told) == set(BackendName)
    assert {name: one["workers_online"] for name, one in told.items() if one["workers_online"]} == {"simulated": 1}
    (threads,) = (key for key in told["pytorch"]["keys"] if key["path"] == "pytorch.num_threads")
    assert threads["engine_parameter"] == "torch.set_num_threads"


async def test_an_experiment_says_where_each_of_its_values_came_from(api: httpx.AsyncClient) -> None:
    view = await submit(
        api,
        sweep={"simulated.batch_size": [2]},
        provenance={"model.id": {"source": "file", "detail": "c.yaml:2"}},
    )
    (run,) = await run_ids(api, view)
    experiment_id = (await api.get(f"/api/v1/runs/{run}")).json()["experiment_id"]
    told = (await api.get(f"/api/v1/experiments/{experiment_id}")).json()["provenance"]
    origins = {one["path"]: (one["value"], one["source"], one["detail"]) for one in told}
    assert origins["model.id"][1:] == ("file", "c.yaml:2")
    assert origins["simulated.batch_size"] == (2, "sweep", "")
    assert origins["backend"] == ("simulated", "request", "")
    assert origins["warmup.cv_threshold"] == (0.05, "default", "")
