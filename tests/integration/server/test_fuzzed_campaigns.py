"""Whatever JSON comes, the server answers with a campaign or with a problem; it never fails."""

from __future__ import annotations

import copy
import json
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from factories.runs import campaign_body
from lem_domain.config.schema import campaign_keys, experiment_keys

pytestmark = pytest.mark.anyio

LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20)
    | st.sampled_from(
        ["\x00", "\ud800", "auto", "pytorch", "simulated", "x" * 5000, 0, -1, 1e308, 2**63, 2**31, "0", ""]
    )
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
PATHS = (
    [f"experiment.{key.path}" for key in experiment_keys()]
    + [key.path for key in campaign_keys()]
    + [
        "sweep.zip",
        "sweep.include",
        "sweep.exclude",
        "sweep.output.max_tokens",
        "experiments",
        "provenance",
        "experiment",
    ]
)
CHANGES = st.lists(st.tuples(st.sampled_from(PATHS), VALUES | st.lists(VALUES, max_size=3)), min_size=1, max_size=3)


def changed(changes: list[tuple[str, Any]]) -> Any:
    """A good body with some of its values replaced."""
    body: Any = copy.deepcopy(campaign_body())
    for path, value in changes:
        head, _, rest = path.partition(".")
        parts = ["sweep", rest] if head == "sweep" and rest else path.split(".")
        at = body
        for part in parts[:-1]:
            at[part] = at[part] if isinstance(at.get(part), dict) else {}
            at = at[part]
        at[parts[-1].removesuffix("[]")] = value
    return body


@settings(
    max_examples=120, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)  # fmt: skip
@given(body=VALUES | CHANGES.map(changed))
async def test_no_json_makes_the_server_fail(api: httpx.AsyncClient, body: Any) -> None:
    content = json.dumps(body).encode()
    for address in ("/api/v1/campaigns:plan", "/api/v1/campaigns"):
        answer = await api.post(address, content=content, headers={"Content-Type": "application/json"})
        assert answer.status_code in (200, 201, 400, 413, 422), (answer.status_code, answer.text, content)
        if answer.status_code >= 400:
            assert answer.headers["content-type"] == "application/problem+json"
            assert answer.json()["detail"]


@pytest.mark.parametrize(
    "content",
    [
        b"[" * 100_000,
        b'{"a":' * 50_000,
        b'{"name": "x", "experiment": {}, "sweep": {"a": [' + b"1," * 300_000 + b"1]}}",
        b"\xff\xfe",
        b"NaN",
        b'{"name": NaN}',
        b'{"name": "x", "experiment": {"model": "\\ud800"}}',
        b'{"priority": ' + b"9" * 100_000 + b"}",
        b"",
    ],
    ids=lambda content: repr(content[:20]),
)
async def test_bombs_are_refused(api: httpx.AsyncClient, content: bytes) -> None:
    answer = await api.post("/api/v1/campaigns", content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code in (400, 413, 422), answer.text
    assert answer.headers["content-type"] == "application/problem+json"
