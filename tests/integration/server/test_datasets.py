"""Sets of prompts over HTTP: built-in and uploaded, addressed by digest."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from factories.runs import campaign_body
from lem_domain.prompt_sets import builtin_prompt_sets, load_builtin_prompts, prompts_digest
from lem_domain.wire.datasets import MAX_DATASET_BYTES

pytestmark = pytest.mark.anyio

PROMPTS = ("What is a watt?", "Tell me about joules, please. 🔌")
DIGEST = prompts_digest(PROMPTS)


def upload(*prompts: str, name: str = "mine") -> dict[str, Any]:
    return {"name": name, "prompts": list(prompts)}


async def test_the_built_in_sets_are_listed_and_readable(api: httpx.AsyncClient) -> None:
    items = (await api.get("/api/v1/datasets")).json()["items"]
    assert {one["name"] for one in items if one["builtin"]} == set(builtin_prompt_sets())
    for one in items:
        content = (await api.get(f"/api/v1/datasets/{one['sha256']}")).json()
        assert content["texts"] == [prompt.text for prompt in load_builtin_prompts(one["name"])]
        assert content["prompts"] == len(content["texts"])


async def test_an_uploaded_set_is_read_back_as_it_was(api: httpx.AsyncClient) -> None:
    answer = await api.put(f"/api/v1/datasets/{DIGEST}", json=upload(*PROMPTS))
    assert answer.status_code == 201, answer.text
    assert answer.json() == {"name": "mine", "sha256": DIGEST, "builtin": False, "prompts": 2}
    content = (await api.get(f"/api/v1/datasets/{DIGEST}")).json()
    assert content["texts"] == list(PROMPTS)
    assert answer.json() in (await api.get("/api/v1/datasets")).json()["items"]


async def test_an_upload_sent_again_changes_nothing(api: httpx.AsyncClient) -> None:
    first = await api.put(f"/api/v1/datasets/{DIGEST}", json=upload(*PROMPTS))
    again = await api.put(f"/api/v1/datasets/{DIGEST}", json=upload(*PROMPTS, name="another name"))
    assert (again.status_code, again.json()) == (200, first.json())


async def test_the_upload_of_a_built_in_set_is_there_already(api: httpx.AsyncClient) -> None:
    name = builtin_prompt_sets()[0]
    texts = [prompt.text for prompt in load_builtin_prompts(name)]
    answer = await api.put(f"/api/v1/datasets/{prompts_digest(texts)}", json=upload(*texts))
    assert (answer.status_code, answer.json()["name"], answer.json()["builtin"]) == (200, name, True)


async def test_a_campaign_may_use_what_was_uploaded(api: httpx.AsyncClient) -> None:
    await api.put(f"/api/v1/datasets/{DIGEST}", json=upload(*PROMPTS))
    experiment = {"backend": "simulated", "model": "m", "prompts": {"dataset": DIGEST}}
    assert (await api.post("/api/v1/campaigns", json=campaign_body(experiment=experiment))).status_code == 201


async def test_datasets_come_in_pages_with_the_built_in_ones_first(api: httpx.AsyncClient) -> None:
    made = []
    for number in range(3):
        prompts = (f"prompt {number}",)
        made.append(prompts_digest(prompts))
        await api.put(f"/api/v1/datasets/{made[-1]}", json=upload(*prompts))
    first = (await api.get("/api/v1/datasets", params={"limit": 2})).json()
    second = (await api.get("/api/v1/datasets", params={"limit": 2, "cursor": first["next"]})).json()
    uploaded = [one["sha256"] for one in first["items"] + second["items"] if not one["builtin"]]
    assert uploaded == sorted(made)
    assert all(not one["builtin"] for one in second["items"])
    assert second["next"] is None


@pytest.mark.parametrize(
    ("digest", "body", "status", "code"),
    [
        ("0" * 64, upload(*PROMPTS), 422, "digest_mismatch"),
        ("nonsense", upload(*PROMPTS), 422, "validation"),
        (DIGEST, {"name": "mine", "prompts": []}, 422, "validation"),
        (DIGEST, {"name": "mine", "prompts": list(PROMPTS), "more": 1}, 422, "validation"),
        (prompts_digest(["a\x00b"]), upload("a\x00b"), 422, "validation"),
    ],
    ids=["digest", "address", "empty", "unknown key", "unstorable"],
)
async def test_a_bad_upload_is_refused_and_nothing_is_kept(
    api: httpx.AsyncClient, digest: str, body: dict[str, Any], status: int, code: str
) -> None:
    answer = await api.put(f"/api/v1/datasets/{digest}", json=body)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert all(one["builtin"] for one in (await api.get("/api/v1/datasets")).json()["items"])


async def test_an_upload_above_the_limit_is_refused(api: httpx.AsyncClient) -> None:
    answer = await api.put(f"/api/v1/datasets/{DIGEST}", json=upload("x" * MAX_DATASET_BYTES))
    assert (answer.status_code, answer.json()["code"]) == (413, "payload_too_large")


async def test_an_upload_of_more_than_a_megabyte_is_taken(api: httpx.AsyncClient) -> None:
    prompts = ("x" * (MAX_DATASET_BYTES - 1000),)
    answer = await api.put(f"/api/v1/datasets/{prompts_digest(prompts)}", json=upload(*prompts))
    assert answer.status_code == 201


async def test_an_unknown_set_is_a_404_with_a_sentence(api: httpx.AsyncClient) -> None:
    answer = await api.get(f"/api/v1/datasets/{'0' * 64}")
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
    assert "the server holds no dataset 000" in answer.json()["detail"]
