"""The PostgreSQL process of a data folder: recognised by what it is, since its noted number may be another's by now."""

from __future__ import annotations

import logging
import signal
import time
from pathlib import Path

import psutil

logger = logging.getLogger(__name__)

NOTE = "postmaster.pid"
STOPS_WITHIN_S = 60.0
QUITS_WITHIN_S = 10.0
POLL_S = 0.05
_FOLDER_LINE = 1
_SOCKET_LINE = 4


def find(folder: Path) -> psutil.Process | None:
    """The PostgreSQL that runs in the folder and is noted there."""
    pid = _pid_in(folder / NOTE)
    if pid is None:
        return None
    try:
        process = psutil.Process(pid)
    except psutil.Error:
        return None
    return process if _works_in(process, folder) else None


def socket_folder(folder: Path) -> Path | None:
    """Where the PostgreSQL of the folder listens; None until it has noted that."""
    lines = _lines(folder / NOTE)
    return Path(lines[_SOCKET_LINE]) if len(lines) > _SOCKET_LINE and lines[_SOCKET_LINE] else None


def remove_stale_notes(folder: Path) -> None:
    """Remove the notes that would keep PostgreSQL from starting although nobody of its runs in the folder: its own, and
    the lock beside its socket.

    A number that no process has is left to PostgreSQL, which then looks for survivors of the one that died.
    """
    stale = [note for note in (*_socket_locks(folder), folder / NOTE) if _is_in_the_way(note)]
    if not stale or any(_works_in(process, folder) for process in psutil.process_iter()):
        return
    for note in stale:
        pid = _pid_in(note)
        whose = "is cut off" if pid is None else f"names process {pid}, which is no PostgreSQL of this folder"
        logger.warning("%s %s; it is left from a crash and is removed", note, whose)
        note.unlink(missing_ok=True)


def stop(process: psutil.Process) -> None:
    """End it in good order, or by force when it takes too long; one that is gone is fine."""
    try:
        process.send_signal(signal.SIGINT)  # PostgreSQL's fast shutdown
        if _ends_within(process, STOPS_WITHIN_S):
            return
        logger.warning("PostgreSQL (process %d) did not stop within %.0f s; it is made to", process.pid, STOPS_WITHIN_S)
        process.send_signal(signal.SIGQUIT)
        if not _ends_within(process, QUITS_WITHIN_S):
            logger.error("PostgreSQL (process %d) goes on running; end it by hand", process.pid)
    except psutil.NoSuchProcess:
        return
    except psutil.AccessDenied:
        logger.error("PostgreSQL (process %d) belongs to another user and goes on running", process.pid)


def _socket_locks(folder: Path) -> list[Path]:
    """The locks of sockets that this folder's PostgreSQL made, there or where its note says that it listens."""
    places = {folder, socket_folder(folder) or folder}
    locks = [lock for place in places for lock in place.glob(".s.PGSQL.*.lock")]
    return [lock for lock in locks if _names(lock, folder)]


def _names(lock: Path, folder: Path) -> bool:
    """Whether a lock is of this folder; one that is cut off is of the folder that it lies in."""
    lines = _lines(lock)
    if len(lines) <= _FOLDER_LINE:
        return lock.parent.samefile(folder)
    return Path(lines[_FOLDER_LINE]) == folder or Path(lines[_FOLDER_LINE]).resolve() == folder.resolve()


def _is_in_the_way(note: Path) -> bool:
    pid = _pid_in(note)
    return note.exists() and (pid is None or psutil.pid_exists(pid))


def _lines(note: Path) -> list[str]:
    try:
        return note.read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return []


def _pid_in(note: Path) -> int | None:
    first = (_lines(note) or [""])[0].strip()
    return int(first) if first.isascii() and first.isdecimal() and 0 < int(first) < 2**31 else None


def _works_in(process: psutil.Process, folder: Path) -> bool:
    """Whether this is a living process of the folder's PostgreSQL: each of them works in its data folder."""
    try:
        if process.name() != "postgres" or process.status() == psutil.STATUS_ZOMBIE:
            return False
        try:
            return folder.samefile(process.cwd())
        except psutil.AccessDenied:  # another user's; its command line is open to everybody
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
