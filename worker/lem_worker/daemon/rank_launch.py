"""Launch of an attempt's ranks through `accelerate launch`.

Launched ranks inherit no pipes, so each connects to a Unix socket of the daemon and sends `Joined`. Under some settings
accelerate silently starts fewer processes than requested (with `--cpu`, one). `Joined` therefore carries the world size
that the rank sees, and the attempt ends when it differs from the requested one.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lem_domain.states import FailureReason
from lem_worker.daemon.attempt_end import machine_failure, run_failure
from lem_worker.daemon.upload import tail
from lem_worker.process.children import LONGEST_LINE, ProcessExit, child_environment, kill_group
from lem_worker.process.protocol import (
    ACCELERATE_MISSING,
    CONTROL_SOCKET,
    ControlMessage,
    FromProcess,
    Joined,
    encode,
    from_process,
)

LAUNCH_OPTIONS = (
    *("--multi_gpu", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"),
    # A free port, so that the workers of one host do not collide.
    *("--main_process_port", "0"),
)
"""Used on the CPU too, with ACCELERATE_USE_CPU in the environment: `--cpu` would start a single process."""


@dataclass
class LaunchedRank:
    """One rank, a grandchild of the daemon."""

    name: str
    joined: Joined
    group: _LaunchedGroup
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def receive(self) -> FromProcess | None:
        """Return the next message; None when the rank closed the connection."""
        try:
            line = await self.reader.readline()
        except ConnectionError:
            return None
        return from_process.validate_json(line) if line.endswith(b"\n") else None

    def send(self, message: ControlMessage) -> None:
        """Send a message; one to a rank that has ended is dropped."""
        self.writer.write(encode(message))

    async def wait(self) -> ProcessExit:
        """Wait for all ranks (accelerate ends the others when one fails) and return this rank's exit."""
        return (await self.group.exits()).get(self.joined.rank, ProcessExit(await self.group.process.wait()))

    async def kill(self, grace_s: float) -> None:
        """End all ranks and the launcher."""
        await self.group.kill(grace_s)
        self.writer.close()


class _LaunchedGroup:
    """The launcher process and the process groups of its ranks."""

    def __init__(self, process: asyncio.subprocess.Process, exits_file: Path) -> None:
        self.process = process
        self.pids: set[int] = set()
        self._exits_file = exits_file

    async def exits(self) -> dict[int, ProcessExit]:
        """Wait for the launcher and return the exits of the ranks that failed."""
        await self.process.wait()
        try:
            exits: dict[str, int] = json.loads(self._exits_file.read_text())
        except (OSError, ValueError):
            return {}
        return {int(rank): ProcessExit(code) for rank, code in exits.items()}

    async def kill(self, grace_s: float) -> None:
        """End the groups of the launcher and of each rank: SIGTERM, `grace_s` seconds later SIGKILL."""
        await asyncio.gather(*(kill_group(pid, grace_s=grace_s) for pid in {self.process.pid, *self.pids}))
        await self.process.wait()


async def launch_ranks(
    module: str,
    job_file: Path,
    names: Sequence[str],
    *,
    attempt_id: str,
    environment: Mapping[str, str],
) -> list[LaunchedRank]:
    """Start one rank per name and return when all have joined.

    `job_file` is that of rank 0; the other ranks read the job file with their name in the same folder.

    Raises:
        AttemptEnded: the number of started ranks is not the requested one.
    """
    # Outside the spool, whose path may be too long: Linux limits the path of a Unix socket to 107 bytes.
    folder = Path(tempfile.mkdtemp(prefix="lem-"))
    arrived: asyncio.Queue[tuple[Joined, asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.Queue()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ValueError):
            arrived.put_nowait((Joined.model_validate_json(await reader.readline()), reader, writer))

    log_file = job_file.with_name("launcher.log")
    exits_file = job_file.with_name("exits.json")
    server = await asyncio.start_unix_server(connected, folder / "control", limit=LONGEST_LINE)
    group = None
    try:
        process = await _start_launcher(
            ["--num_processes", str(len(names)), *LAUNCH_OPTIONS, "--module", module, str(job_file)],
            log_file=log_file,
            exits_file=exits_file,
            attempt_id=attempt_id,
            environment={**environment, CONTROL_SOCKET: str(folder / "control")},
        )
        group = _LaunchedGroup(process, exits_file)
        return await _until_joined(names, arrived, group, log_file)
    except BaseException:
        if group is not None:
            await group.kill(0)
        raise
    finally:
        server.close()
        shutil.rmtree(folder, ignore_errors=True)


async def _until_joined(
    names: Sequence[str],
    arrived: asyncio.Queue[tuple[Joined, asyncio.StreamReader, asyncio.StreamWriter]],
    group: _LaunchedGroup,
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
                raise _launch_failed(ProcessExit(ended.result()), tail(log_file))
            joined, reader, writer = joining.result()
            group.pids.add(joined.pid)
            if joined.world_size != len(names):
                raise run_failure(
                    FailureReason.NOT_AS_REQUESTED,
                    f"{len(names)} processes were requested and accelerate started {joined.world_size}; "
                    "check the ACCELERATE_… variables of the worker's environment, or request the number it starts.",
                )
            ranks[joined.rank] = LaunchedRank(names[joined.rank], joined, group, reader, writer)
    finally:
        ended.cancel()
    return [ranks[number] for number in range(len(names))]


def _launch_failed(ended: ProcessExit, last_lines: str) -> Exception:
    if ended.code == ACCELERATE_MISSING:
        return machine_failure(FailureReason.BACKEND_UNAVAILABLE, last_lines)
    return machine_failure(
        FailureReason.BACKEND_INITIALISATION,
        f"accelerate launch {ended} before all ranks had joined; its last lines:\n{last_lines}",
    )


async def _start_launcher(
    arguments: Sequence[str], *, log_file: Path, exits_file: Path, attempt_id: str, environment: Mapping[str, str]
) -> asyncio.subprocess.Process:
    with log_file.open("ab") as log:
        return await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "lem_worker.backends.pytorch.accelerate_launcher", str(exits_file), *arguments),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env={**child_environment(attempt_id), **environment},
        )
