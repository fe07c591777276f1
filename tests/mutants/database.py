"""`python -m mutants.database`: one PostgreSQL for every trial, because each fork would start another."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def one_cluster() -> Iterator[None]:
    """Have the tests use one PostgreSQL, which ends with this program.

    Raises:
        RuntimeError: PostgreSQL did not start.
    """
    holder = subprocess.Popen(
        [sys.executable, "-m", "mutants.database"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert holder.stdin is not None
    assert holder.stdout is not None
    kept = os.environ.copy()
    try:
        url = holder.stdout.readline().strip()
        if not url:
            raise RuntimeError("PostgreSQL did not start.")
        os.environ.update({"LEM_TEST_DATABASE_URL": url, "LEM_TEST_DATABASE_READY": "1"})
        yield
    finally:
        os.environ.clear()
        os.environ.update(kept)
        holder.stdin.close()
        holder.wait()


def main() -> None:
    """Run PostgreSQL until the standard input ends."""
    # The trials import the server themselves, over a change; so only this process may import it now.
    from conftest import hurry, make_template
    from factories.folders import database_folder
    from lem_server.database.embedded import EmbeddedPostgres

    folder = database_folder("lem-mutants-")
    try:
        with EmbeddedPostgres(folder / "postgres") as postgres:
            url = postgres.url.set(database="postgres")
            asyncio.run(hurry(url))
            asyncio.run(make_template(url))
            print(url.render_as_string(hide_password=False), flush=True)  # noqa: T201 - read by `one_cluster`
            sys.stdin.read()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
