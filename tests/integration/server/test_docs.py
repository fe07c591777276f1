"""The documentation: served by the application alone, and true of every operation."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import httpx
import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute, iter_route_contexts
from sqlalchemy.engine import make_url

from lem_server.app import create_app
from lem_server.http.documentation import ASSETS
from lem_server.settings import Settings

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parents[3]
_METHODS = ("get", "put", "post", "delete", "patch")


@pytest.fixture
def described(server_settings: Settings) -> FastAPI:
    """The application, not started."""
    return create_app(server_settings, make_url("postgresql+asyncpg://nowhere/lem"))


@pytest.fixture
def document(described: FastAPI) -> dict[str, Any]:
    """The OpenAPI document."""
    return described.openapi()


def operations(document: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    return {
        (method.upper(), path): operation
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
        if method in _METHODS
    }


# --- the page ---------------------------------------------------------------------------------------------------------


async def test_the_page_and_all_its_assets_come_from_the_application(anonymous: httpx.AsyncClient) -> None:
    page = await anonymous.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    links = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert len(links) == 4
    for link in links:
        assert link.startswith("/docs/assets/")
        asset = await anonymous.get(link)
        assert asset.status_code == 200 and asset.content, link
        assert asset.content == (ASSETS / link.rpartition("/")[2]).read_bytes()


async def test_no_address_elsewhere_is_in_the_page_its_script_or_its_styles(anonymous: httpx.AsyncClient) -> None:
    for path in ("/docs", "/docs/assets/start.js"):
        assert not re.search(r"https?:|[\"'(]//", (await anonymous.get(path)).text), path
    styles = (await anonymous.get("/docs/assets/swagger-ui.css")).text
    loaded = re.findall(r"url\(\s*[\"']?([^)\"']+)", styles)
    assert all(one.startswith(("data:", "#")) for one in loaded)
    assert "@import" not in styles


async def test_no_asset_names_a_source_map_that_is_not_there(anonymous: httpx.AsyncClient) -> None:
    for name in ("swagger-ui-bundle.js", "swagger-ui.css", "start.js"):
        assert "sourceMappingURL=" not in (await anonymous.get(f"/docs/assets/{name}")).text


async def test_the_content_security_policy_lets_the_page_work_and_nothing_else(anonymous: httpx.AsyncClient) -> None:
    page = await anonymous.get("/docs")
    policy = {
        name: sources.split()
        for name, _, sources in (
            part.strip().partition(" ") for part in page.headers["content-security-policy"].split(";")
        )
    }
    # Scripts, fetches of /openapi.json and of the API: this origin. Styles also from the script, icons as data: URLs.
    assert policy["default-src"] == ["'self'"]
    assert "script-src" not in policy and "connect-src" not in policy
    assert set(policy["style-src"]) == {"'self'", "'unsafe-inline'"}
    assert set(policy["img-src"]) == {"'self'", "data:"}
    assert policy["frame-ancestors"] == ["'none'"]
    assert not re.search(r"<script(?![^>]*\bsrc=)|\son\w+=|javascript:", page.text), "an inline script is not allowed"


async def test_the_script_asks_for_the_document_that_the_application_serves(anonymous: httpx.AsyncClient) -> None:
    script = (await anonymous.get("/docs/assets/start.js")).text
    [url] = re.findall(r'\burl: "([^"]+)"', script)
    answer = await anonymous.get(urljoin("/docs", url))
    assert answer.status_code == 200 and answer.json()["openapi"].startswith("3.")
    assert re.search(r"validatorUrl: null", script), "swagger.io would be asked to validate the document"


async def test_scripts_are_served_as_scripts(anonymous: httpx.AsyncClient) -> None:
    """`nosniff` is set, so that a wrong type would keep the browser from running them."""
    types = {
        "swagger-ui-bundle.js": "javascript",
        "start.js": "javascript",
        "swagger-ui.css": "text/css",
        "favicon-32x32.png": "image/png",
    }
    for name, kind in types.items():
        assert kind in (await anonymous.get(f"/docs/assets/{name}")).headers["content-type"]


def test_the_assets_are_those_that_their_readme_names() -> None:
    listed = re.findall(r"^([0-9a-f]{64})  (\S+)$", (ASSETS / "README.md").read_text(), re.MULTILINE)
    named = {name: digest for digest, name in listed}
    assert len(named) == 3
    for name, digest in named.items():
        assert hashlib.sha256((ASSETS / name).read_bytes()).hexdigest() == digest, name
    others = {path.name for path in ASSETS.iterdir()} - set(named)
    assert others == {"README.md", "LICENSE", "NOTICE", "start.js"}


# --- the document -----------------------------------------------------------------------------------------------------


def test_every_operation_is_named_after_its_function(described: FastAPI, document: dict[str, Any]) -> None:
    functions = {
        (method, context.path): context.original_route.endpoint.__name__
        for context in iter_route_contexts(described.routes)
        if isinstance(context.original_route, APIRoute) and context.include_in_schema
        for method in context.original_route.methods or ()
    }
    named = {place: operation["operationId"] for place, operation in operations(document).items()}
    assert named == functions
    assert len(set(named.values())) == len(named)


def test_every_operation_says_what_it_does_in_a_sentence(document: dict[str, Any]) -> None:
    for place, operation in operations(document).items():
        assert operation.get("description", "").rstrip().endswith("."), place
        assert operation["tags"], place


def test_every_operation_of_the_api_documents_its_refusals(document: dict[str, Any]) -> None:
    for (method, path), operation in operations(document).items():
        if not path.startswith("/api/"):
            continue
        responses = operation["responses"]
        assert {"401", "403"} <= set(responses), (method, path)
        for status, response in responses.items():
            if status >= "400":
                assert list(response["content"]) == ["application/problem+json"], (method, path, status)
        if "{" in path and method == "GET":
            assert "404" in responses, (method, path)


def test_every_reference_within_the_document_leads_somewhere(document: dict[str, Any]) -> None:
    def walk(node: Any) -> list[str]:
        if isinstance(node, dict):
            return [value for key, value in node.items() if key == "$ref"] + [
                found for value in node.values() for found in walk(value)
            ]
        return [found for value in node for found in walk(value)] if isinstance(node, list) else []

    references = set(walk(document))
    assert references
    for reference in references:
        node: Any = document
        for part in reference.removeprefix("#/").split("/"):
            node = node[part.replace("~1", "/").replace("~0", "~")]


def test_every_parameter_of_a_path_is_described(document: dict[str, Any]) -> None:
    for place, operation in operations(document).items():
        in_path = {one["name"]: one for one in operation.get("parameters", []) if one["in"] == "path"}
        assert set(in_path) == set(re.findall(r"\{([^}]+)\}", place[1])), place
        assert all(one["required"] for one in in_path.values())


def test_the_committed_document_is_the_applications() -> None:
    """`make reference` writes it."""
    done = subprocess.run([sys.executable, "-m", "tools.reference.openapi"], capture_output=True, check=True, cwd=ROOT)
    assert done.stdout == (ROOT / "docs/reference/openapi.json").read_bytes()


def test_the_document_does_not_depend_on_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    from tools.reference.openapi import document as printed

    plain = printed()
    monkeypatch.setenv("LEM_HOST", "10.0.0.1")
    monkeypatch.setenv("LEM_DATABASE_URL", "postgresql://elsewhere/lem")
    assert printed() == plain
    assert json.loads(plain)["info"]["title"]
