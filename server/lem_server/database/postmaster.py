"""The PostgreSQL process of a data folder, identified by its name and working directory.

A crash leaves `postmaster.pid` behind, and the process id in it may belong to another program since; in containers,
where ids are small, it usually does.
"""

from __future__ import annotations

import logging
import signal
import time
from pathlib import Path

import psutil

logger = logging.getLogger(__name__)

PID_FILE = "postmaster.pid"
STOPS_WITHIN_S = 60.0
"""Of the checkpoint that a fast shutdown writes."""
QUITS_WITHIN_S = 10.0
POLL_S = 0.05
# Line numbers, from 0, in postmaster.pid and in the lock file of a socket (PostgreSQL's miscadmin.h).
_FOLDER_LINE = 1
_SOCKET_LINE = 4


def find(folder: Path) -> psutil.Process | None:
    """Return the PostgreSQL that runs in the folder and is recorded in its `postmaster.pid`."""
    pid = _pid_in(folder / PID_FILE)
    if pid is None:
        return None
    try:
        process = psutil.Process(pid)
    except psutil.Error:
        return None
    return process if _works_in(process, folder) else None


def socket_folder(folder: Path) -> Path | None:
    """Return the folder of the socket; None until PostgreSQL has recorded it."""
    lines = _lines(folder / PID_FILE)
    return Path(lines[_SOCKET_LINE]) if len(lines) > _SOCKET_LINE and lines[_SOCKET_LINE] else None


def remove_stale_locks(folder: Path) -> None:
    """Remove lock files that would prevent a start although no PostgreSQL runs in the folder.

    A file whose process id does not exist is left for PostgreSQL, which then looks for surviving children of the
    process that died.
    """
    stale = [lock for lock in (*_socket_locks(folder), folder / PID_FILE) if _prevents_start(lock)]
    if not stale or any(_works_in(process, folder) for process in psutil.process_iter()):
        return
    for lock in stale:
        pid = _pid_in(lock)
        reason = "is truncated" if pid is None else f"names process {pid}, which is no PostgreSQL of this folder"
        logger.warning("%s %s; it is left from a crash and is removed", lock, reason)
        lock.unlink(missing_ok=True)


def stop(process: psutil.Process) -> None:
    """Stop PostgreSQL, by force when it takes too long; a process that is gone is no failure."""
    try:
        process.send_signal(signal.SIGINT)  # PostgreSQL's fast shutdown
        if _ends_within(process, STOPS_WITHIN_S):
            return
        logger.warning("PostgreSQL (process %d) did not stop within %.0f s; it is killed", process.pid, STOPS_WITHIN_S)
        process.send_signal(signal.SIGQUIT)  # PostgreSQL's immediate shutdown: the next start recovers
        if not _ends_within(process, QUITS_WITHIN_S):
            logger.error("PostgreSQL (process %d) does not stop; kill it manually", process.pid)
    except psutil.NoSuchProcess:
        return
    except psutil.AccessDenied:
        logger.error("PostgreSQL (process %d) belongs to another user and keeps running", process.pid)


def _socket_locks(folder: Path) -> list[Path]:
    """Return the lock files of sockets of this folder's PostgreSQL, in the folder or where its last one listened."""
    folders = {folder, socket_folder(folder) or folder}
    locks = [lock for one in folders for lock in one.glob(".s.PGSQL.*.lock")]
    return [lock for lock in locks if _belongs_to(lock, folder)]


def _belongs_to(lock: Path, folder: Path) -> bool:
    """Return whether a lock file names the folder; a truncated one belongs to the folder that it is in."""
    lines = _lines(lock)
    if len(lines) <= _FOLDER_LINE:
        return lock.parent.samefile(folder)
    return Path(lines[_FOLDER_LINE]) == folder or Path(lines[_FOLDER_LINE]).resolve() == folder.resolve()


def _prevents_start(lock: Path) -> bool:
    pid = _pid_in(lock)
    return lock.exists() and (pid is None or psutil.pid_exists(pid))


def _lines(lock: Path) -> list[str]:
    try:
        return lock.read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return []


def _pid_in(lock: Path) -> int | None:
    first = (_lines(lock) or [""])[0].strip()
    return int(first) if first.isascii() and first.isdecimal() and 0 < int(first) < 2**31 else None


def _works_in(process: psutil.Process, folder: Path) -> bool:
    """Return whether this is a living process of the folder's PostgreSQL; they all have it as working directory."""
    try:
        if process.name() != "postgres" or process.status() == psutil.STATUS_ZOMBIE:
            return False
        try:
            return folder.samefile(process.cwd())
        except psutil.AccessDenied:  # another user's process; its command line is readable
            return str(folder) in process.cmdline()
    except (psutil.Error, OSError):
        return False


def _ends_within(process: psutil.Process, seconds: float) -> bool:
    give_up = time.monotonic() + seconds
    while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
        if time.monotonic() > give_up:
            return False
        time.sleep(POLL_S)
    return True
