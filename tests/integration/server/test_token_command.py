"""`lem-server token`: access is set up before the server may be reached from elsewhere."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from sqlalchemy.engine import URL

LEM_SERVER = Path(sys.executable).parent / "lem-server"


def run(url: URL, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("LEM_")}
    environment = {**kept, "LEM_DATABASE_URL": url.render_as_string(hide_password=False), "LEM_DATA_DIR": str(folder)}
    return subprocess.run([LEM_SERVER, *arguments], env=environment, capture_output=True, text=True, check=False)


@pytest.mark.anyio
async def test_a_token_is_printed_once_and_opens_the_api(
    api: httpx.AsyncClient, anonymous: httpx.AsyncClient, database_url: URL, tmp_path: Path
) -> None:
    done = run(database_url, tmp_path, "token", "--kind", "worker", "--name", "bench")
    assert (done.returncode, done.stdout.count("\n")) == (0, 1), done.stderr
    answer = await anonymous.get("/api/v1/workers", headers={"Authorization": f"Bearer {done.stdout.strip()}"})
    assert answer.status_code == 200
    listed = (await api.get("/api/v1/tokens")).json()["items"]
    assert [(one["name"], one["kind"]) for one in listed if one["kind"] != "owner"] == [("bench", "worker")]


def test_a_database_without_the_schema_is_refused_with_what_to_run(empty_database_url: URL, tmp_path: Path) -> None:
    done = run(empty_database_url, tmp_path, "token", "--kind", "ci", "--name", "nightly")
    assert (done.returncode, done.stdout) == (2, "")
    assert "lem-server migrate" in done.stderr


def test_a_kind_that_there_is_not_is_wrong_usage(database_url: URL, tmp_path: Path) -> None:
    assert run(database_url, tmp_path, "token", "--kind", "owner", "--name", "x").returncode == 2
