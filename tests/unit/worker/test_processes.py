"""Supervised processes: they hear and are heard, and none outlives its purpose, however stubborn."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from uuid import uuid4

import psutil
import pytest

from lem_worker.process.children import Child, ProcessExit, group_members, kill_leftovers
from lem_worker.process.protocol import Go, Ready, Stop

pytestmark = pytest.mark.anyio

PRELUDE = """
import os, signal, subprocess, sys, time
from lem_worker.process.control import ControlPipes
from lem_worker.process.protocol import Go, Ready, Stop
from lem_worker.process.children import die_with_parent
die_with_parent()
control = ControlPipes.from_environment(os.environ)
"""
STUBBORN_CHILD = "import signal, os; signal.signal(signal.SIGTERM, signal.SIG_IGN); os.write(1, b'.'); signal.pause()"
SPAWN = f"""
def spawn(**options):
    child = subprocess.Popen([sys.executable, "-c", {STUBBORN_CHILD!r}], stdout=subprocess.PIPE, **options)
    child.stdout.read(1)
    print(child.pid, flush=True)
"""
SCRIPTS = {
    "echo": "print(control.receive(), flush=True)\ncontrol.send(Ready())\nsys.exit(3)",
    "waiting": "control.send(Ready())\nsignal.pause()",
    "stubborn": SPAWN
    + "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nspawn()\ncontrol.send(Ready())\nwhile True: signal.pause()",
    "escaping": SPAWN + "spawn(start_new_session=True)\ncontrol.send(Ready())\nsignal.pause()",
    "renamed": "import setproctitle\nsetproctitle.setproctitle('ENGINE' * 500)\ncontrol.send(Ready())\nsignal.pause()",
    "half": 'os.write(control._write_fd, b\'{"type": "rea\')\nos.kill(os.getpid(), signal.SIGKILL)',
}

Start = Callable[[str], Awaitable[Child]]


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Start]:
    """Start a script as a supervised process of attempt `tmp_path.name`; all are gone afterwards."""
    children = []

    async def run(script: str) -> Child:
        (tmp_path / f"{script}.py").write_text(PRELUDE + SCRIPTS[script])
        job = tmp_path / "job.json"
        job.write_text("{}")
        child = await Child.start(
            "rank-0",
            script,
            job,
            log_file=tmp_path / "rank-0.log",
            attempt_id=str(tmp_path),
            environment={"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
        )
        children.append(child)
        return child

    yield run
    for child in children:
        await child.kill(0)
    await kill_leftovers([str(tmp_path)], grace_s=0)


def pids_told(tmp_path: Path) -> list[int]:
    """What the process printed."""
    return [int(line) for line in (tmp_path / "rank-0.log").read_text().split()]


def lives(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


async def test_a_child_hears_is_heard_and_its_output_is_kept(start: Start, tmp_path: Path) -> None:
    child = await start("echo")
    child.send(Go())
    assert await child.receive() == Ready()
    assert await child.receive() is None
    assert str(await child.wait()) == "ended with exit code 3"
    assert "type='go'" in (tmp_path / "rank-0.log").read_text()


async def test_a_message_cut_short_by_a_kill_is_none(start: Start) -> None:
    child = await start("half")
    assert await child.receive() is None
    assert await child.wait() == ProcessExit(-signal.SIGKILL)


async def test_a_message_to_a_process_that_is_gone_is_dropped(start: Start) -> None:
    child = await start("half")
    await child.wait()
    child.send(Stop())


async def test_a_child_leads_its_own_group(start: Start) -> None:
    child = await start("waiting")
    await child.receive()
    assert os.getpgid(child.pid) == child.pid != os.getpgid(0)
    assert [one.pid for one in group_members(child.pid)] == [child.pid]


async def test_a_polite_child_ends_by_sigterm_within_the_grace(start: Start) -> None:
    child = await start("waiting")
    await child.receive()
    await child.kill(grace_s=60)
    assert str(await child.wait()) == "was killed by SIGTERM"


async def test_children_and_grandchildren_that_ignore_sigterm_are_killed(start: Start, tmp_path: Path) -> None:
    child = await start("stubborn")
    await child.receive()
    [grandchild] = pids_told(tmp_path)
    assert lives(grandchild)
    await child.kill(grace_s=0.1)
    assert group_members(child.pid) == []
    assert not lives(grandchild)
    assert await child.wait() == ProcessExit(-signal.SIGKILL)


async def test_a_group_is_killed_even_when_its_leader_is_gone(start: Start, tmp_path: Path) -> None:
    child = await start("stubborn")
    await child.receive()
    [grandchild] = pids_told(tmp_path)
    os.kill(child.pid, signal.SIGKILL)
    await child.wait()
    assert lives(grandchild)
    await child.kill(grace_s=0)
    assert not lives(grandchild)


async def test_what_left_its_group_is_found_by_its_attempt(start: Start, tmp_path: Path) -> None:
    child = await start("escaping")
    await child.receive()
    [escaped] = pids_told(tmp_path)
    await child.kill(grace_s=0)
    assert lives(escaped)
    assert await kill_leftovers([str(tmp_path)], grace_s=0) == 1
    assert not lives(escaped)
    assert await kill_leftovers([str(tmp_path)]) == 0


async def test_a_process_that_names_itself_is_still_found_by_its_attempt(start: Start, tmp_path: Path) -> None:
    child = await start("renamed")
    await child.receive()
    assert psutil.Process(child.pid).cmdline()[0].startswith("ENGINE")
    assert await kill_leftovers([str(tmp_path)], grace_s=0) == 1


async def test_a_process_of_another_attempt_is_left_alone(start: Start) -> None:
    child = await start("waiting")
    await child.receive()
    assert await kill_leftovers([f"att_{uuid4().hex}"]) == 0
    assert await kill_leftovers([]) == 0
    assert lives(child.pid)


async def test_a_recycled_process_id_is_not_shot(start: Start) -> None:
    child = await start("half")
    await child.wait()
    innocent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", "import signal; signal.pause()", start_new_session=True
    )
    try:
        child.pid = innocent.pid  # what the system may do once the whole group is gone
        await child.kill(grace_s=0)
        assert innocent.returncode is None and lives(innocent.pid)
    finally:
        innocent.kill()
        await innocent.wait()


ORPHANING = """
import subprocess, sys, os
subprocess.Popen([sys.executable, "-c",
    "import os, signal; from lem_worker.process.children import die_with_parent; die_with_parent();"
    "os.write(1, b'up'); signal.pause()"], env={**os.environ, "LEM_PARENT": str(os.getpid())}, start_new_session=True)
import signal; signal.pause()
"""


async def test_a_child_dies_with_its_parent_even_when_that_is_killed() -> None:
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", ORPHANING, stdout=asyncio.subprocess.PIPE, start_new_session=True
    )
    assert parent.stdout is not None
    assert await parent.stdout.readexactly(2) == b"up"
    parent.kill()
    # The child holds the other end of the pipe too: only its end is the end of the file.
    assert await asyncio.wait_for(parent.stdout.read(), 30) == b""
    await parent.wait()
