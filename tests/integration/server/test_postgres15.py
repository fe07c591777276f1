"""The oldest supported PostgreSQL, as Debian 12 ships it: migrations, states, leases, evidence and aggregation."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest
from sqlalchemy.engine import URL

from factories.runs import run_ids, submit
from factories.worker import FakeWorker, plain_evidence
from lem_server.access.service import OWNER_TOKEN_FILE
from lem_server.app import create_app
from lem_server.database.engine import database_url as checked_url
from lem_server.database.migrate import downgrade, upgrade
from lem_server.settings import Settings

pytestmark = pytest.mark.anyio

BIN = Path("/usr/lib/postgresql/15/bin")


def command(*arguments: str) -> list[str]:
    """As root, PostgreSQL runs as Debian's user for it: it refuses to run as root."""
    return ["runuser", "-u", "postgres", "--", *arguments] if os.geteuid() == 0 else list(arguments)


@pytest.fixture(scope="module")
def postgres15() -> Iterator[URL]:
    """A server of its own on a unix socket."""
    if not (BIN / "postgres").exists():
        pytest.skip("PostgreSQL 15 is not installed (Debian's package postgresql-15)")
    folder = Path(tempfile.mkdtemp(prefix="lem-pg15-"))
    if os.geteuid() == 0:
        os.chown(folder, pwd.getpwnam("postgres").pw_uid, -1)
    data = folder / "data"
    subprocess.run(
        command(str(BIN / "initdb"), "-U", "lem", "--auth=trust", "--encoding=utf8", "-D", str(data)),
        check=True,
        capture_output=True,
        cwd="/",
    )
    control = command(str(BIN / "pg_ctl"), "-w", "-D", str(data))
    subprocess.run(
        [*control, "-l", str(folder / "log"), "-o", f"-c listen_addresses='' -k {folder}", "start"],
        check=True,
        cwd="/",
        stdout=subprocess.DEVNULL,
    )
    yield checked_url(f"postgresql://lem@/postgres?host={folder}")
    subprocess.run([*control, "-m", "immediate", "stop"], check=True, cwd="/", stdout=subprocess.DEVNULL)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
async def api15(postgres15: URL, tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    """The application over it, with the owner's token."""
    await upgrade(postgres15)
    settings = Settings(data_dir=tmp_path, trusted_hosts=("testserver",))
    app = create_app(settings, postgres15)
    async with app.router.lifespan_context(app):
        token = (tmp_path / OWNER_TOKEN_FILE).read_text().strip()
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(app=app),
            base_url="http://testserver",
            headers={"Authorization": f"Bearer {token}"},
        ) as client:
            yield client
    await downgrade(postgres15, "base")


async def test_a_run_goes_all_the_way(api15: httpx.AsyncClient) -> None:
    campaign = await submit(api15)
    worker = await FakeWorker(api15).ready()
    attempt = await worker.whole_attempt(plain_evidence())
    answer = await api15.post(f"/api/v1/runs/{attempt.run_id}:aggregate")
    assert answer.status_code == 200, answer.text
    assert answer.json()["work"]["generated_tokens"] == 16
    assert (await api15.get(f"/api/v1/runs/{attempt.run_id}")).json()["state"] == "aggregated"
    assert attempt.run_id in await run_ids(api15, campaign)
    transitions = (await api15.get(f"/api/v1/runs/{attempt.run_id}/transitions")).json()["items"]
    assert [one["target"] for one in transitions] == ["queued", "initialised", "running", "completed", "aggregated"]
