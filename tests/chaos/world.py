"""The system under chaos: a PostgreSQL, two servers and three workers as processes, with a proxy on every wire."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import asyncpg
import psutil

from chaos.journal import Exchange, HttpTap, Journal
from factories.fault_proxy import FaultProxy, Tcp, Unix
from lem_server.access.service import OWNER_TOKEN_FILE
from lem_server.database.embedded import EmbeddedPostgres

BIN = Path(sys.executable).parent
READY = re.compile(r"LEM server ready at http://127\.0\.0\.1:(\d+)")
_ERROR = re.compile(r"(ERROR|CRITICAL) .*")
USER = "user"
COMES_UP_WITHIN_S = 300.0
ENDS_WITHIN_S = 300.0


class Terms(NamedTuple):
    """Of every lease."""

    ttl_s: float = 6.0
    grace_s: float = 4.0
    beat_s: float = 1.0

    @property
    def lost_after_s(self) -> float:
        """A worker that is silent for longer has lost what it held; the look at the leases comes every few seconds."""
        return self.ttl_s + self.grace_s + 2


class Step(NamedTuple):
    """Something that went on: a change which a server accepted and whose answer arrived."""

    at: float
    who: str


class Worlds(Exception):
    """The world could not be made or mended; this is no finding about what it runs."""


class Postgres:
    """A PostgreSQL that may be killed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._server = EmbeddedPostgres(folder)

    async def start(self) -> None:
        """Start, also after it was killed."""
        # Whoever started the one that was killed must take leave of it, or it stays behind as a zombie.
        await asyncio.to_thread(self._server.stop)
        self._server = EmbeddedPostgres(self._folder)
        await asyncio.to_thread(self._server.start)

    def kill(self, number: signal.Signals) -> None:
        """A signal to the postmaster."""
        os.kill(self._postmaster(), number)

    async def gone(self) -> None:
        """Wait until the postmaster has ended."""
        with contextlib.suppress(FileNotFoundError, ValueError):
            await until_dead([self._postmaster()])

    async def stop(self) -> None:
        """Stop it."""
        await asyncio.to_thread(self._server.stop)
        with contextlib.suppress(FileNotFoundError, ValueError, ProcessLookupError):
            os.kill(self._postmaster(), signal.SIGQUIT)

    @property
    def socket(self) -> Path:
        """Where it listens."""
        return Path(str(self._server.url.query["host"])) / ".s.PGSQL.5432"

    async def connect(self) -> asyncpg.Connection:
        """A connection of one's own, past every proxy, as a superuser."""
        url = self._server.url
        return await asyncpg.connect(
            host=str(url.query["host"]), user=url.username, database=url.database, timeout=10, command_timeout=60
        )

    def url_over(self, port: int) -> str:
        """The database's URL over a proxy."""
        return f"postgresql://{self._server.url.username}@127.0.0.1:{port}/{self._server.url.database}"

    def _postmaster(self) -> int:
        return int((self._folder / "postmaster.pid").read_text().splitlines()[0])


class Process:
    """A process of the system that is started again when it was killed, and must not end by itself."""

    def __init__(self, name: str, log: Path, ended_by_itself: list[str]) -> None:
        self.name = name
        self.log = log
        self._ended_by_itself = ended_by_itself
        self._process: asyncio.subprocess.Process | None = None
        self._expected = False
        self._watching: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int:
        """Of what runs, or ran last."""
        assert self._process is not None
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self._process is not None and self._process.returncode is None

    async def kill(self) -> None:
        """SIGKILL."""
        assert self._process is not None
        self._expected = True
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()

    async def terminate(self) -> int | None:
        """SIGTERM; its exit code, or None where it had to be killed."""
        if self._process is None:
            return 0
        self._expected = True
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
        try:
            async with asyncio.timeout(ENDS_WITHIN_S):
                return await self._process.wait()
        except TimeoutError:
            await self.kill()
            return None

    def family(self, *marks: str) -> list[psutil.Process]:
        """What it started and still runs, where a word of the command line is one of these."""
        found = []
        with contextlib.suppress(psutil.Error):
            for child in psutil.Process(self.pid).children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    if child.status() != psutil.STATUS_ZOMBIE and (not marks or set(marks) & set(child.cmdline())):
                        found.append(child)
        return found

    async def _spawn(
        self, *command: str | Path, environment: dict[str, str], stdout: int = asyncio.subprocess.DEVNULL
    ) -> asyncio.subprocess.Process:
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *command, env=environment, stdout=stdout, stderr=log, start_new_session=True
            )
        self._expected = False
        return self._process

    def _watch(self) -> None:
        self._watching = asyncio.create_task(self._tell_end())

    async def _tell_end(self) -> None:
        assert self._process is not None
        code = await self._process.wait()
        if not self._expected:
            last = self.log.read_text(errors="replace").strip().splitlines()[-1:]
            self._ended_by_itself.append(f"{self.name} ended by itself with code {code}: {''.join(last)}")


class Server(Process):
    """A `lem-server serve` with its own wire to the database."""

    def __init__(self, name: str, world: World) -> None:
        super().__init__(name, world.folder / f"{name}.log", world.ended_by_themselves)
        self.data = world.folder / name
        self.database = FaultProxy([Unix(world.postgres.socket)])
        self.port = 0
        self._environment = world.environment

    @property
    def token_file(self) -> Path:
        """The owner's token, as this server wrote it down."""
        return self.data / OWNER_TOKEN_FILE

    async def start(self, database_url: str) -> None:
        """Start, on the same port as before; while the database is away it does not come up and is started again."""
        deadline = time.monotonic() + COMES_UP_WITHIN_S
        while True:
            process = await self._spawn(
                *(BIN / "lem-server", "serve", "--port", str(self.port), "--data-dir", self.data),
                environment={**self._environment, "LEM_DATABASE_URL": database_url},
                stdout=asyncio.subprocess.PIPE,
            )
            assert process.stdout is not None
            found = READY.search((await process.stdout.readline()).decode())
            if found is not None:
                self.port = int(found[1])
                self._watch()
                return
            await self.kill()
            if time.monotonic() > deadline:
                raise Worlds(f"{self.name} did not come up: {self.log.read_text(errors='replace')[-2000:]}")
            await asyncio.sleep(0.5)


class Worker(Process):
    """A `lem-worker run` with its own wire to the servers; its state stays over restarts."""

    def __init__(self, name: str, devices: int, world: World) -> None:
        super().__init__(name, world.folder / f"{name}.log", world.ended_by_themselves)
        self.state = world.folder / "state" / name
        self.wire = FaultProxy([Tcp("127.0.0.1", one.port) for one in world.servers], tap=lambda: world.tap(name))
        self._devices = devices
        self._environment = {**world.environment, "LEM_TOKEN_FILE": str(world.servers[0].token_file)}

    async def start(self) -> None:
        """Start, or start anew with what is left of the last time."""
        await self._spawn(
            *(BIN / "lem-worker", "run", "--backend", "simulated", "--server", f"http://127.0.0.1:{self.wire.port}"),
            *("--state-dir", self.state, "--name", self.name, "--devices", str(self._devices)),
            environment=self._environment,
        )
        self._watch()

    def left_in_spool(self) -> list[str]:
        """Attempts that were neither delivered nor dropped."""
        spool = self.state / "spool"
        return sorted(one.name for one in spool.iterdir()) if spool.is_dir() else []


class World:
    """Everything, below one temporary folder."""

    def __init__(self, terms: Terms) -> None:
        self.terms = terms
        self.folder = Path(tempfile.mkdtemp(prefix="lem-chaos-"))
        # As root PostgreSQL runs as another user, who must get in.
        self.folder.chmod(0o755)
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("LEM_", "XDG_"))}
        self.environment = {
            **kept,
            "OMP_NUM_THREADS": "1",
            "LEM_LEASE_TTL_S": str(terms.ttl_s),
            "LEM_LEASE_GRACE_S": str(terms.grace_s),
            "LEM_BEAT_INTERVAL_S": str(terms.beat_s),
            "LEM_CACHE_DIR": str(self.folder / "cache"),
        }
        self.ended_by_themselves: list[str] = []
        self.journal = Journal(self.folder / "journal.jsonl")
        self.steps: list[Step] = []
        self.answers: Counter[tuple[str, int]] = Counter()
        """How often each kind of request got each status, over all workers and the user."""
        self.postgres = Postgres(self.folder / "postgres")
        self.servers: list[Server] = []
        self.workers: list[Worker] = []
        self.user_wire: FaultProxy | None = None

    async def start(self, workers: int = 3) -> None:
        """Start everything and wait until both servers are up."""
        await self.postgres.start()
        migrate = await asyncio.create_subprocess_exec(
            *(BIN / "lem-server", "migrate", "--data-dir", self.folder / "migrate"),
            env={**self.environment, "LEM_DATABASE_URL": self._direct_url()},
            stdout=asyncio.subprocess.DEVNULL,
        )
        if await migrate.wait():
            raise Worlds("the schema could not be made")
        for name in ("server-one", "server-two"):
            server = Server(name, self)
            self.servers.append(server)
            await server.database.start()
            await self.start_server(server)
        self.user_wire = FaultProxy([Tcp("127.0.0.1", one.port) for one in self.servers], tap=lambda: self.tap(USER))
        await self.user_wire.start()
        for number in range(workers):
            worker = Worker(f"worker-{number}", 2 if number == 0 else 1, self)
            self.workers.append(worker)
            await worker.wire.start()
            await worker.start()

    def tap(self, name: str) -> HttpTap:
        """A tap that keeps the journal."""

        def told(exchange: Exchange) -> None:
            self.journal.note(exchange)
            self.answers[(kind_of(exchange), exchange.status)] += 1
            if exchange.is_step or (name == USER and exchange.delivered and exchange.status < 300):
                self.steps.append(Step(exchange.at, name))

        return HttpTap(told)

    async def start_server(self, server: Server) -> None:
        """Start a server over its wire to the database."""
        await server.start(self.postgres.url_over(server.database.port))

    async def start_postgres(self) -> None:
        """Start PostgreSQL after it was killed."""
        await self.postgres.gone()
        await self.postgres.start()
        for server in self.servers:
            server.database.targets[:] = [Unix(self.postgres.socket)]

    def wires(self) -> Iterable[FaultProxy]:
        """Every proxy."""
        yield from (one.database for one in self.servers)
        yield from (one.wire for one in self.workers)
        if self.user_wire is not None:
            yield self.user_wire

    def logged_errors(self) -> Counter[str]:
        """What servers and workers logged as errors, without what is particular to each."""
        found: Counter[str] = Counter()
        for one in (*self.servers, *self.workers):
            for line in one.log.read_text(errors="replace").splitlines():
                if match := _ERROR.search(line):
                    found[re.sub(r"[0-9a-f]{32}|\d{4,}", "…", match[0])] += 1
        return found

    async def stop(self) -> list[str]:
        """End everything; says who did not end as told."""
        unruly = []
        for group in (self.workers, self.servers):
            codes = await asyncio.gather(*(one.terminate() for one in group))
            unruly += [
                f"{one.name} was told to end and {'had to be killed' if code is None else f'ended with code {code}'}"
                for one, code in zip(group, codes, strict=True)
                if code != 0
            ]
        await self._release()
        return unruly

    async def destroy(self) -> None:
        """End everything at once, whatever state it is in."""
        for one in (*self.workers, *self.servers):
            if one.alive:
                family = [child.pid for child in one.family()]
                await one.kill()
                for pid in family:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
        await self._release()

    async def _release(self) -> None:
        for wire in self.wires():
            await wire.close()
        await self.postgres.stop()
        self.journal.close()

    def forget(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _direct_url(self) -> str:
        return self.postgres._server.url.set(drivername="postgresql").render_as_string(hide_password=False)


def kind_of(exchange: Exchange) -> str:
    """A request without what is particular to it."""
    path = re.sub(r"[a-z]{3}_[0-9a-f]{32}", "{id}", exchange.path)
    path = re.sub(r"(processes|streams|chunks|logs)/[^/]+", r"\1/{}", path)
    return f"{exchange.method} {path.removeprefix('/api/v1')}"


async def until_dead(pids: Iterable[int]) -> None:
    """Wait until these processes have ended."""
    left = set(pids)
    while left := {pid for pid in left if _lives(pid)}:  # noqa: ASYNC110
        await asyncio.sleep(0.05)


def _lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def seeded(seed: int, purpose: str) -> random.Random:
    """A generator of its own for each purpose, so that one does not disturb another."""
    return random.Random(f"{seed}:{purpose}")
