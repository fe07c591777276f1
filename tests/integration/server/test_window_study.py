"""The study of the length of a window, over HTTP."""

from __future__ import annotations

import httpx
import pytest

from factories.runs import submit
from factories.worker import FakeWorker, plain_evidence
from lem_domain.results.window_study import WindowStudy

pytestmark = pytest.mark.anyio


async def test_a_run_is_cut_into_windows_of_the_wanted_lengths(api: httpx.AsyncClient) -> None:
    await submit(api)
    worker = await FakeWorker(api).ready()
    run = (await worker.whole_attempt(plain_evidence(seconds=4, watts=50.0, chunk_rows=10))).run_id
    path = f"/api/v1/runs/{run}/window_study"
    answer = await api.get(path, params={"length_s": [2, 1], "target": 0.5})
    assert answer.status_code == 200, answer.text
    found = WindowStudy.model_validate_json(answer.content)
    assert [(one.length_s, one.windows) for one in found.lengths] == [(1.0, 4), (2.0, 2)]
    assert found.target == 0.5
    for parameters in ({"length_s": 0}, {"target": 2}, {"length_s": "x"}):
        assert (await api.get(path, params=parameters)).status_code == 422  # type: ignore[arg-type]
    assert (await api.get("/api/v1/runs/run_" + "7" * 32 + "/window_study")).status_code == 404
