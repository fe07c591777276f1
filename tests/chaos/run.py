"""One chaos run: a world, its user, its faults, and the audit when everything has come to rest."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable

import asyncpg
import httpx

from chaos import audit
from chaos.faults import Chaos
from chaos.journal import Journal
from chaos.report import Report
from chaos.user import User
from chaos.watch import Watch
from chaos.world import Server, Terms, World, seeded
from lem_domain.states import LIVE_STATES, RunState

SETTLES_WITHIN_S = 300.0
_UNSETTLED = [state.value for state in (RunState.QUEUED, *LIVE_STATES)]


async def run(world: World, *, seconds: float, seed: int, tell: Callable[[str], None] = lambda _: None) -> Report:
    """Make chaos for so long, let everything settle, and look at what is left. The world is ended afterwards."""
    began = time.monotonic()
    await world.start()
    tell(f"up after {time.monotonic() - began:.1f} s in {world.folder}")
    user, watch = User(world, seeded(seed, "user")), Watch(world)
    chaos = Chaos(world, seeded(seed, "faults"), tell=lambda what: tell(f"{time.monotonic() - began:7.1f} s  {what}"))
    stop = asyncio.Event()
    watching = asyncio.create_task(watch.run())
    living = asyncio.create_task(user.live(stop))
    try:
        await chaos.run(seconds)
        stop.set()
        await living
        over = time.monotonic()
        connection = await world.postgres.connect()
        tell("no more faults; settling")
        await _settle(connection)
        settled = time.monotonic() - over
    finally:
        for task in (watching, living):
            task.cancel()
        await asyncio.gather(watching, living, return_exceptions=True)
        await user.close()
    tell(f"settled after {settled:.1f} s; auditing")
    report = Report(seed, seconds, settled, chaos.made, world.steps, chaos.skipped, answers=world.answers)
    async with client_of(world.servers[0]) as api:
        await _audit(report, world, user, watch, connection, api)
    await connection.close()
    report.violations["processes that did not end as told"] = await world.stop()
    return report


def client_of(server: Server) -> httpx.AsyncClient:
    """A client past every proxy."""
    return httpx.AsyncClient(
        base_url=f"http://127.0.0.1:{server.port}",
        headers={"Authorization": f"Bearer {server.token_file.read_text().strip()}"},
        timeout=60,
        trust_env=False,
    )


async def _settle(connection: asyncpg.Connection) -> None:
    deadline = time.monotonic() + SETTLES_WITHIN_S
    count = "SELECT count(*) FROM runs WHERE state = ANY($1::text[])"
    while await connection.fetchval(count, _UNSETTLED) and time.monotonic() < deadline:  # noqa: ASYNC110
        await asyncio.sleep(0.25)


async def _audit(
    report: Report, world: World, user: User, watch: Watch, connection: asyncpg.Connection, api: httpx.AsyncClient
) -> None:
    wrong, figures = report.violations, report.figures
    entries = Journal.read(world.journal.path)
    lost, lost_untold, told, untold = await audit.acknowledged_chunks(entries, api)
    wrong["acknowledged chunks lost or changed"] = lost
    wrong["stored chunks lost whose answer was dropped"] = lost_untold
    wrong["acknowledged completions lost"] = await audit.acknowledged_completions(entries, connection)
    figures["chunks acknowledged"] = told
    figures["chunks stored whose answer only was dropped"] = untold
    wrong["illegal or missing transitions"], figures["transitions"] = await audit.illegal_transitions(connection)
    wrong["runs stuck"] = await audit.stuck_runs(connection)
    wrong["overlapping leases"], figures["attempts"] = await audit.overlapping_leases(connection)
    wrong["wrong leases seen meanwhile"] = sorted(watch.wrong_leases)
    wrong["two attempts on one device seen meanwhile"] = sorted(watch.shared_devices)
    figures["looks at the leases"] = f"{watch.looks} (with {watch.leases_seen} leases)"
    wrong["writes after an attempt's end"] = await audit.late_writes(connection)
    wrong["corrupt chunks"], figures["chunks stored"] = await audit.corrupt_chunks(connection)
    wrong["wrong completions"], figures["runs completed"] = await audit.wrong_completions(connection)
    wrong["wrong campaigns"] = await audit.wrong_campaigns(connection, user.campaigns)
    figures["campaigns"] = (
        f"{len(user.campaigns)} ({sum(one.cancelled_at is not None for one in user.campaigns)} cancelled, "
        f"{sum(bool(one.paused) for one in user.campaigns)} paused)"
    )
    wrong["runs that could not be aggregated"], figures["runs aggregated"] = await audit.aggregate_all(connection, api)
    wrong["answers that a user must not get"] = user.wrong_answers
    wrong["processes of attempts left"] = await audit.left_processes(connection)
    wrong["attempts left in a spool"] = [
        f"{one.name}: {attempt}" for one in world.workers for attempt in one.left_in_spool()
    ]
    wrong["evidence that a server refused"] = [
        f"{one.name}: {kept.name}" for one in world.workers for kept in (one.state / "refused").glob("*")
    ]
    wrong["processes that ended by themselves"] = world.ended_by_themselves
    outcomes = Counter(
        f"{row['outcome']}" + (f" ({row['reason']})" if row["reason"] else "")
        for row in await connection.fetch("SELECT outcome, reason FROM attempts")
    )
    figures["requests of lost attempts refused"] = sum(
        count for (kind, status), count in world.answers.items() if status == 409 and "/attempts/" in kind
    )
    figures["attempts by outcome"] = dict(sorted(outcomes.items()))
    report.errors = world.logged_errors()
    report.run_states = dict(await connection.fetch("SELECT state, count(*) FROM runs GROUP BY state ORDER BY state"))


def make_world(terms: Terms | None = None) -> World:
    """A world with short leases."""
    return World(terms or Terms())
