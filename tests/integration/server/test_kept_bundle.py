"""A bundle that LEM 0.1.0 wrote is imported with identical results, and its evidence gives the same figures today.

`tests/data/campaign-0.1.0.tar` is a campaign of two experiments on `builtin:tiny-llama`: `pytorch` and `simulated`.
"""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import httpx
import pytest

pytestmark = pytest.mark.anyio

KEPT = Path(__file__).parents[2] / "data" / "campaign-0.1.0.tar"
NOT_FIGURES = ("computed_by", "inputs_sha256", "findings", "checks")
"""Members of a result that name the computing version (its configuration has the keys that a release adds), or whose
sentences a release may improve."""


def kept_results() -> dict[str, bytes]:
    """The stored results of the bundle by run id."""
    with tarfile.open(KEPT) as archive:
        texts = [archive.extractfile(member) for member in archive if member.name.endswith(".result.json")]
        results = [text.read() for text in texts if text is not None]
    return {json.loads(result)["run_id"]: result for result in results}


def figures(result: Any) -> Any:
    """Everything of a result but the computing version and sentences; of a reason only whether there is one."""
    if isinstance(result, list):
        return [figures(one) for one in result]
    if isinstance(result, dict):
        return {
            name: value is not None if name == "reason" else figures(value)
            for name, value in result.items()
            if name not in NOT_FIGURES
        }
    return result


def shared(new: Any, old: Any) -> Any:
    """What a result has that an older one could have: a release may add figures and checks."""
    if isinstance(new, dict) and isinstance(old, dict):
        return {name: shared(value, old[name]) for name, value in new.items() if name in old}
    if isinstance(new, list) and isinstance(old, list) and len(new) == len(old):
        return [shared(*pair) for pair in zip(new, old, strict=True)]
    return new


async def test_its_results_are_the_stored_bytes_and_its_evidence_gives_the_same_figures(api: httpx.AsyncClient) -> None:
    imported = await api.post(
        "/api/v1/campaigns:import", content=KEPT.read_bytes(), headers={"Content-Type": "application/x-tar"}
    )
    assert imported.status_code == 201, imported.text
    results = kept_results()
    assert len(results) == 2
    for run_id, stored in results.items():
        shown = await api.get(f"/api/v1/runs/{run_id}/aggregate")
        assert shown.content == stored
        computed = await api.post(f"/api/v1/runs/{run_id}:aggregate?method=m1")
        assert computed.status_code == 200, computed.text
        old, new = json.loads(stored), computed.json()
        assert figures(shared(new, old)) == figures(old)
        assert [finding["code"] for finding in new["findings"]] == [finding["code"] for finding in old["findings"]]
        passed = {check["name"]: check["passed"] for check in new["checks"]}
        assert {check["name"]: check["passed"] for check in old["checks"]}.items() <= passed.items()
