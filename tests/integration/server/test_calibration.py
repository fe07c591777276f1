"""`POST /runs/{id}:calibrate`: a meter's log against a run's stored evidence; stores nothing."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import httpx
import numpy as np
import pytest

from factories.evidence import EPOCH_NS, Evidence, ns, simulated
from factories.metered import STEP_S, FloatArray, Meter, Sensor, csv_text, work_w
from factories.runs import submit
from factories.worker import FakeWorker
from lem_domain.wire.calibration import MAX_METER_LOG_BYTES, CalibrationFit

pytestmark = pytest.mark.anyio

LENGTH_S = 60.0
BEGIN = datetime(2026, 12, 1, 8, 30, tzinfo=UTC)
"""At 0 s of the run."""
SENSOR = Sensor(0.93, -4.0)
CSV = {"Content-Type": "text/csv"}


@pytest.fixture(scope="module")
def watts() -> FloatArray:
    return work_w(np.random.default_rng(11), LENGTH_S)


@pytest.fixture(scope="module")
def log(watts: FloatArray) -> str:
    return csv_text(Meter(0.2, 1.0).log(np.random.default_rng(12), watts), BEGIN)


@pytest.fixture
async def run(api: httpx.AsyncClient, watts: FloatArray) -> str:
    """A run of one device whose sensor reads 0.93 × power - 4 W."""
    await submit(api)
    worker = await FakeWorker(api).ready()
    made = Evidence(devices=(simulated(),))
    made.request(0, 20.0, [25.0, 30.0, 40.0])
    readings = SENSOR.sampled(np.random.default_rng(13), watts, 0.1)
    shown = dict(zip(readings.times_s.tolist(), readings.watts.tolist(), strict=True))
    made.power(shown, watts=shown.__getitem__)
    utc_ns = int(BEGIN.timestamp()) * 10**9
    for at in (0.0, LENGTH_S):
        detail = {"monotonic_ns": ns(at), "utc_ns": utc_ns + ns(at) - EPOCH_NS, "uncertainty_ns": 1000}
        made.event("sampler", "clock", json.dumps(detail), at)
    return (await worker.whole_attempt(made)).run_id


async def calibrate(api: httpx.AsyncClient, run: str, log: str, **options: str) -> httpx.Response:
    return await api.post(f"/api/v1/runs/{run}:calibrate", content=log.encode(), headers=CSV, params=options)


def refusal(answer: httpx.Response) -> tuple[int, str, str]:
    problem = answer.json()
    return answer.status_code, problem["code"], problem["detail"]


async def test_the_sensor_s_gain_and_offset_are_found_and_applied(
    api: httpx.AsyncClient, run: str, watts: FloatArray, log: str
) -> None:
    answer = await calibrate(api, run, log, source="meter 4711")
    assert answer.status_code == 200, answer.text
    fit = CalibrationFit.model_validate_json(answer.content)
    assert fit.gain_interval.low <= SENSOR.gain <= fit.gain_interval.high
    assert fit.offset_interval_w.low <= SENSOR.offset_w <= fit.offset_interval_w.high
    assert fit.pairs >= 90 and fit.high_w - fit.low_w > 200 and fit.covered > 0.95 and fit.empty_rows == 0
    assert fit.rows == log.count("\n") - 1
    assert "meter 4711" in fit.calibration.source and run in fit.calibration.source
    assert fit.log_sha256[:16] in fit.calibration.source
    assert (await api.get(f"/api/v1/runs/{run}")).json()["state"] == "completed", "nothing was stored"
    assert (await api.get(f"/api/v1/runs/{run}/aggregate")).status_code == 404

    true_j = float(watts[round(20 / STEP_S) : round(40 / STEP_S)].sum()) * STEP_S
    address = f"/api/v1/runs/{run}:aggregate"
    plain = (await api.post(address)).json()["energy"]["total"]
    entry = fit.calibration.model_dump(mode="json")
    own = (await api.post(address, json={"calibration": [entry]})).json()["energy"]["total"]
    assert abs(plain["joules"] - true_j) > plain["bound_j"], "simulated devices are taken to be exact"
    assert abs(own["joules"] - true_j) <= own["bound_j"] < 0.05 * true_j


async def test_a_log_in_local_time_by_a_clock_that_is_behind_is_aligned(
    api: httpx.AsyncClient, run: str, watts: FloatArray
) -> None:
    rows = Meter(0.2, 1.0, behind_s=7.3).log(np.random.default_rng(12), watts)
    lines = csv_text(rows, BEGIN + timedelta(hours=1), header="Time;P").replace(",", ";").replace("+00:00", "")
    options = {"timezone": "Europe/Paris", "time_column": "Time", "power_column": "P"}
    fit = CalibrationFit.model_validate_json((await calibrate(api, run, lines, clock="correlation", **options)).content)
    assert abs(fit.clock_offset_s - 7.3) <= fit.clock_uncertainty_s + 0.3
    assert fit.gain_interval.low <= SENSOR.gain <= fit.gain_interval.high
    code = refusal(await calibrate(api, run, lines, **options))
    assert code[:2] == (422, "validation") and "clock differs" in code[2]


async def test_wrong_options_are_refused(api: httpx.AsyncClient, run: str, log: str) -> None:
    for options, words in (
        ({"device": "GPU-9"}, "no samples of a GPU GPU-9; it used SIM-"),
        ({"unit": "kW"}, "name its unit"),
        ({"fit": "all"}, ""),
        ({"search_s": "0"}, ""),
        ({"no_such": "1"}, ""),
    ):
        status, code, detail = refusal(await calibrate(api, run, log, **options))
        assert (status, code) == (422, "validation") and words in detail, detail


async def test_logs_that_do_not_fit_are_refused(api: httpx.AsyncClient, run: str, log: str) -> None:
    header, *rows = log.splitlines()
    for lines, words in (
        ("\n".join([header, *rows[:60]]), "less than half of the run's readings"),
        (log.replace("T08:", "T09:"), "2026-12-01 09:30:00 to 2026-12-01 09:30:59 UTC, less than half"),
    ):
        status, code, detail = refusal(await calibrate(api, run, lines))
        assert (status, code) == (422, "validation") and words in detail, detail


async def test_what_is_no_log_of_a_finished_run_is_refused(api: httpx.AsyncClient, run: str, log: str) -> None:
    address = f"/api/v1/runs/{run}:calibrate"
    large = {**CSV, "Content-Length": str(MAX_METER_LOG_BYTES + 1)}
    assert refusal(await api.post(address, content=b"", headers=large))[:2] == (413, "payload_too_large")
    assert refusal(await api.post(address, json={}))[:2] == (415, "unsupported_media_type")
    assert refusal(await calibrate(api, "run_" + "0" * 32, log))[:2] == (404, "not_found")
    other = await submit(api, name="queued")
    [queued] = (await api.get("/api/v1/runs", params={"campaign_id": other["id"]})).json()["items"]
    assert refusal(await calibrate(api, queued["id"], log))[:2] == (409, "conflict")
