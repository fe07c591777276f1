"""A run gets the devices that it asks for, or waits for them."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from factories.runs import EXPERIMENT, submit
from factories.worker import FakeWorker

pytestmark = pytest.mark.anyio

UUIDS = ("SIM-a", "SIM-b", "SIM-c")
NAMES = {"SIM-a": "Fast 100_X", "SIM-b": "Slow 200%", "SIM-c": "Fast 100YX"}


async def submitted(api: httpx.AsyncClient, **devices: Any) -> None:
    await submit(api, experiment={**EXPERIMENT, "devices": devices})


async def worker_of_three(api: httpx.AsyncClient) -> FakeWorker:
    return await FakeWorker(api, uuids=UUIDS, names=NAMES).ready()


@pytest.mark.proves("devices.uuids", on="server")
async def test_a_run_gets_the_devices_that_it_names_in_its_order(api: httpx.AsyncClient) -> None:
    await submitted(api, uuids=["SIM-c", "SIM-a"])
    assert (await (await worker_of_three(api)).claimed()).devices == ("SIM-c", "SIM-a")


@pytest.mark.proves("devices.uuids", on="server")
async def test_a_run_waits_for_the_devices_that_it_names_and_others_go_first(api: httpx.AsyncClient) -> None:
    await submitted(api, uuids=["SIM-b"])
    await submitted(api)
    worker = await worker_of_three(api)
    other = await worker.claim(devices=["SIM-a", "SIM-c"])
    assert other.json()["devices"] == ["SIM-a"]
    assert (await worker.claim(devices=["SIM-c"])).status_code == 204
    assert (await worker.claim(devices=["SIM-b"])).json()["devices"] == ["SIM-b"]


@pytest.mark.proves("devices.kind", "devices.count", on="server")
@pytest.mark.parametrize(
    ("devices", "given"),
    [
        ({"kind": "slow*"}, ["SIM-b"]),
        ({"kind": "*100*", "count": 2}, ["SIM-a", "SIM-c"]),
        ({"kind": "Fast 100_?"}, ["SIM-a"]),
        ({"kind": "*200%"}, ["SIM-b"]),
        ({"kind": "simulated", "count": 3}, ["SIM-a", "SIM-b", "SIM-c"]),
        ({"kind": "Fast*", "uuids": ["SIM-c"]}, ["SIM-c"]),
        ({"kind": "Fast*", "count": 3}, None),
        ({"kind": "Fast*", "uuids": ["SIM-b"]}, None),
        ({"kind": "gpu"}, None),
        ({"count": 2}, ["SIM-a", "SIM-b"]),
        ({"count": 4}, None),
    ],
)
async def test_a_run_gets_only_devices_of_the_kind_that_it_wants(
    api: httpx.AsyncClient, devices: dict[str, Any], given: list[str] | None
) -> None:
    await submitted(api, **devices)
    answer = await (await worker_of_three(api)).claim()
    assert (answer.json()["devices"] if answer.status_code == 200 else None) == given


async def test_a_plan_says_when_no_registered_worker_has_the_devices(api: httpx.AsyncClient) -> None:
    await worker_of_three(api)
    answer = await api.post(
        "/api/v1/campaigns:plan",
        json={
            "name": "c",
            "experiment": EXPERIMENT,
            "sweep": {"devices": [{"kind": "*H100*"}, {"kind": "fast*"}, {"uuids": ["GPU-1"]}]},
        },
    )
    assert answer.status_code == 200, answer.text
    said = answer.json()["notes"]
    assert [note for note in said if "1 device of kind '*H100*'" in note]
    assert [note for note in said if "the device GPU-1" in note]
    assert said[2:] == ["Registered workers can run 1 of the 3 runs."]
