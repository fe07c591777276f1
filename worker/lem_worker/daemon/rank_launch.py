"""Starts the ranks of an attempt through `accelerate launch`, and counts them.

Launched ranks inherit no pipes, so each connects to a socket of the daemon and says who it is. accelerate starts fewer
processes than it was told under some settings, without a word: with `--cpu`, one. A rank therefore tells how many it
was started among, and the attempt ends when that is not what was asked for.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from lem_domain.states import FailureReason
from lem_worker.daemon.ending import broken, failed
from lem_worker.daemon.upload import tail
from lem_worker.process.children import ATTEMPT_VARIABLE, LONGEST_LINE, ProcessExit, kill_group
from lem_worker.process.protocol import (
    CONTROL_SOCKET,
    NO_ACCELERATE,
    ControlMessage,
    FromProcess,
    Joined,
    decode_from_process,
    encode,
)

HOW = ("--multi_gpu", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no")
"""On the CPU too, where ACCELERATE_USE_CPU stands in the environment; with `--cpu` there would be one process."""


class LaunchedRank:
    """One rank, a grandchild of the daemon."""

    def __init__(
        self, joined: Joined, name: str, group: _Group, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.name = name
        self.pid = joined.pid
        self._rank = joined.rank
        self._group = group
        self._reader = reader
        self._writer = writer

    async def receive(self) -> FromProcess | None:
        """The next message; None when the rank hung up."""
        try:
            line = await self._reader.readline()
        except ConnectionError:
            return None
        return decode_from_process(line) if line.endswith(b"\n") else None

    def send(self, message: ControlMessage) -> None:
        """Send a message; a rank that is gone doesn't get it."""
        self._writer.write(encode(message))

    async def wait(self) -> ProcessExit:
        """Wait for the end of all ranks, which accelerate brings about when one fails; how this one ended."""
        return (await self._group.ends()).get(self._rank, ProcessExit(await self._group.process.wait()))

    async def kill(self, grace_s: float) -> None:
        """End all ranks and what launched them."""
        await self._group.kill(grace_s)
        self._writer.close()


class _Group:
    """What `accelerate launch` is, and the ranks that it started."""

    def __init__(self, process: asyncio.subprocess.Process, exits_file: Path) -> None:
        self.process = process
        self.pids: set[int] = set()
        self._exits_file = exits_file

    async def ends(self) -> dict[int, ProcessExit]:
        """How the ranks that failed ended, by number."""
        await self.process.wait()
        try:
            exits: dict[str, int] = json.loads(self._exits_file.read_text())
        except (OSError, ValueError):
            return {}
        return {int(rank): ProcessExit(code) for rank, code in exits.items()}

    async def kill(self, grace_s: float) -> None:
        """SIGTERM, later SIGKILL, to the launcher's group and to each rank's, until none lives."""
        await asyncio.gather(*(kill_group(pid, grace_s=grace_s) for pid in {self.process.pid, *self.pids}))
        await self.process.wait()


async def launch(
    module: str,
    job_file: Path,
    names: Sequence[str],
    *,
    attempt_id: str,
    environment: Mapping[str, str],
) -> list[LaunchedRank]:
    """Start one rank for each name, and return when all have said who they are.

    `job_file` is the first one's; the others lie beside it under their own names.

    Raises:
        AttemptEnded: another number of ranks was started than was asked for, or none.
    """
    # Not in the spool: a socket's path may have no more than 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="lem-"))
    arrived: asyncio.Queue[tuple[Joined, asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.Queue()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ValueError):
            arrived.put_nowait((Joined.model_validate_json(await reader.readline()), reader, writer))

    log_file = job_file.with_name("launcher.log")
    server = await asyncio.start_unix_server(connected, folder / "control", limit=LONGEST_LINE)
    group = None
    try:
        process = await _start(
            ["--num_processes", str(len(names)), *HOW, "--main_process_port", "0", "--module", module, str(job_file)],
            log_file=log_file,
            exits_file=job_file.with_name("exits.json"),
            environment={**environment, CONTROL_SOCKET: str(folder / "control"), ATTEMPT_VARIABLE: attempt_id},
        )
        group = _Group(process, job_file.with_name("exits.json"))
        return await _all_of(names, arrived, group, log_file)
    except BaseException:
        if group is not None:
            await group.kill(0)
        raise
    finally:
        server.close()
        shutil.rmtree(folder, ignore_errors=True)


async def _all_of(
    names: Sequence[str],
    arrived: asyncio.Queue[tuple[Joined, asyncio.StreamReader, asyncio.StreamWriter]],
    group: _Group,
    log_file: Path,
) -> list[LaunchedRank]:
    ranks: dict[int, LaunchedRank] = {}
    ended = asyncio.create_task(group.process.wait())
    try:
        while len(ranks) < len(names):
            joining = asyncio.create_task(arrived.get())
            await asyncio.wait({joining, ended}, return_when=asyncio.FIRST_COMPLETED)
            if not joining.done():
                joining.cancel()
                raise _launched_nothing(ProcessExit(ended.result()), tail(log_file))
            joined, reader, writer = joining.result()
            group.pids.add(joined.pid)
            if joined.world_size != len(names):
                raise failed(
                    FailureReason.NOT_AS_REQUESTED,
                    f"pytorch.num_processes was requested as {len(names)} and accelerate started {joined.world_size}; "
                    "look at accelerate's own settings in the worker's environment (ACCELERATE_…), or request what "
                    "it starts.",
                )
            ranks[joined.rank] = LaunchedRank(joined, names[joined.rank], group, reader, writer)
    finally:
        ended.cancel()
    return [ranks[number] for number in range(len(names))]


def _launched_nothing(ended: ProcessExit, last_lines: str) -> Exception:
    if ended.code == NO_ACCELERATE:
        return broken(FailureReason.BACKEND_UNAVAILABLE, last_lines)
    return broken(
        FailureReason.BACKEND_INITIALISATION,
        f"accelerate launch {ended} before all ranks were there; its last lines:\n{last_lines}",
    )


async def _start(
    arguments: Sequence[str], *, log_file: Path, exits_file: Path, environment: Mapping[str, str]
) -> asyncio.subprocess.Process:
    with log_file.open("ab") as log:
        return await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "lem_worker.backends.pytorch.accelerate_launcher", str(exits_file), *arguments),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env={
                **os.environ,
                **environment,
                "LEM_PARENT": str(os.getpid()),
                "PYTHONUNBUFFERED": "1",
                "SPT_NOENV": "1",
            },
        )
