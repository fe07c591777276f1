"""Looks at the leases and at the machine's processes while the chaos goes on."""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from pathlib import Path

import asyncpg

from chaos.world import World

LOOK_EVERY_S = 0.25

_LEASES = """
    SELECT 'run ' || run_id || ' has ' || count(*) || ' leases' FROM leases GROUP BY run_id HAVING count(*) > 1
    UNION ALL
    SELECT 'device ' || device_uuid || ' is leased ' || count(*) || ' times'
      FROM device_leases GROUP BY device_uuid HAVING count(*) > 1
    UNION ALL
    SELECT 'attempt ' || l.attempt_id || ' is leased although its run is ' || r.state || ' with attempt '
           || coalesce(r.current_attempt::text, 'none') || ' and it ended as ' || coalesce(a.outcome, 'nothing yet')
      FROM leases l JOIN runs r ON r.id = l.run_id JOIN attempts a ON a.id = l.attempt_id
     WHERE r.current_attempt <> l.attempt_id OR r.state NOT IN ('initialised', 'running') OR a.outcome IS NOT NULL
    UNION ALL
    SELECT 'run ' || r.id || ' is ' || r.state || ' and nobody has a lease on it'
      FROM runs r WHERE r.state IN ('initialised', 'running')
       AND NOT EXISTS (SELECT 1 FROM leases l WHERE l.run_id = r.id AND l.attempt_id = r.current_attempt)
    UNION ALL
    SELECT 'attempt ' || a.id || ' is open and has no lease'
      FROM attempts a WHERE a.outcome IS NULL AND NOT EXISTS (SELECT 1 FROM leases l WHERE l.attempt_id = a.id)
"""


class Watch:
    """What was seen that must never be seen."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.looks = 0
        self.leases_seen = 0
        self.wrong_leases: set[str] = set()
        self.shared_devices: set[str] = set()

    async def run(self) -> None:
        """Look for ever."""
        await asyncio.gather(self._look_at_leases(), self._look_at_processes())

    async def _look_at_leases(self) -> None:
        connection: asyncpg.Connection | None = None
        while True:
            try:
                if connection is None:
                    connection = await self._world.postgres.connect()
                self.wrong_leases.update(row[0] for row in await connection.fetch(_LEASES))
                self.leases_seen += await connection.fetchval("SELECT count(*) FROM leases")
                self.looks += 1
            except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
                if connection is not None:
                    connection.terminate()
                connection = None
            await asyncio.sleep(LOOK_EVERY_S)

    async def _look_at_processes(self) -> None:
        while True:
            measuring: dict[str, set[str]] = defaultdict(set)
            for attempt, command in processes_of_attempts():
                for worker in self._world.workers:
                    if "lem_worker.rank.main" in command and str(worker.state) in command:
                        measuring[worker.name].add(attempt)
            for name, attempts in measuring.items():
                if len(attempts) > 1:
                    self.shared_devices.add(f"{name} ran {' and '.join(sorted(attempts))} at once")
            await asyncio.sleep(LOOK_EVERY_S)


def processes_of_attempts() -> list[tuple[str, str]]:
    """Every living process on this machine that an attempt started: the attempt and the command line."""
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        # A process that ends meanwhile has no environment any more, nor has a zombie.
        with contextlib.suppress(OSError):
            environment = (folder / "environ").read_bytes()
            at = environment.find(b"\0LEM_ATTEMPT=")
            if at < 0:
                continue
            attempt = environment[at + 13 :].partition(b"\0")[0].decode()
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            found.append((attempt, command))
    return found
