"""The files of the embedded PostgreSQL: checked, created, and the start of the program that serves them."""

from __future__ import annotations

import logging
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from lem_server.database.binaries import MAJOR, binaries, socket_folder, user_for
from lem_server.database.engine import DatabaseError

logger = logging.getLogger(__name__)

LOG = "log"
_CREATED = ("PG_VERSION", "global/pg_control", "base/5")
"""Files that initdb creates first, in the middle and last (5 is the database `postgres`); every backup has them."""
_INITDB_ERROR = re.compile(r"error:|FATAL:|PANIC:|was terminated|exited with")


def check(folder: Path) -> None:
    """Refuse a folder that can't be used.

    Raises:
        DatabaseError: it can't be created or written, or another version of PostgreSQL created it.
    """
    data = folder.parent
    try:
        data.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DatabaseError(f"the data folder {data} can't be created: {error.strerror}.") from error
    for needed in (data, folder):
        if needed.exists() and not os.access(needed, os.W_OK | os.X_OK):
            raise DatabaseError(f"the data folder {needed} is not writable; set LEM_DATA_DIR to one that is.")
    marker = folder / "PG_VERSION"
    found = marker.read_text().strip() if marker.exists() else ""
    if found not in ("", str(MAJOR)):
        raise DatabaseError(
            f"{folder} was created by PostgreSQL {found} and this is {MAJOR}; "
            "move the data with pg_dump, or set LEM_DATA_DIR to another folder."
        )


def create(folder: Path) -> None:
    """Create the cluster unless it exists; the caller owns the folder.

    initdb works in a temporary folder, which is renamed when it is complete. A killed initdb therefore leaves nothing
    that could be taken for a cluster.

    Raises:
        DatabaseError: it can't be created, or the existing one is damaged.
    """
    missing = [name for name in _CREATED if not (folder / name).exists()]
    if not missing:
        return
    if folder.exists() and any(folder.iterdir()):
        raise DatabaseError(
            f"{folder} holds a damaged database ({missing[0]} is missing); "
            "restore a backup there, or set LEM_DATA_DIR to another folder."
        )
    for left in folder.parent.glob(f"{folder.name}.new-*"):
        shutil.rmtree(left, ignore_errors=True)
    temporary = Path(tempfile.mkdtemp(prefix=f"{folder.name}.new-", dir=folder.parent))
    try:
        _initdb(temporary)
        temporary.rename(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _sync(folder.parent)


def launch(folder: Path) -> subprocess.Popen[bytes]:
    """Start PostgreSQL as a child process."""
    user = user_for(folder)
    socket = socket_folder(folder, user)
    with (folder / LOG).open("ab") as log:
        return subprocess.Popen(
            [binaries() / "postgres", "-D", folder, "-h", "", "-k", socket],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            user=user,
            # A Ctrl-C in the terminal goes to the whole session; the server must stop PostgreSQL after itself.
            start_new_session=True,
        )


def log_hint(folder: Path) -> str:
    """Return the path of PostgreSQL's log, with its last fatal error."""
    path = folder / LOG
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    errors = [line.split("FATAL:", 1)[1].strip() for line in lines[-50:] if "FATAL:" in line]
    return f"its log is {path}" + (f" ({errors[-1]})" if errors else "")


def _initdb(folder: Path) -> None:
    user = user_for(folder)
    if user is not None:
        shutil.chown(folder, user)
    done = subprocess.run(
        [binaries() / "initdb", "--auth=trust", "--encoding=utf8", "-U", "postgres", "-D", folder],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        user=user,
        start_new_session=True,
        check=False,
    )
    if done.returncode != 0:
        logger.error("initdb failed:\n%s", done.stderr.strip())
        errors = [line.strip() for line in done.stderr.splitlines() if _INITDB_ERROR.search(line)]
        raise DatabaseError(
            f"PostgreSQL's files can't be created in {folder.parent}: {'; '.join(errors) or 'see the log'}."
        )


def _sync(folder: Path) -> None:
    """Make the rename durable: after a power cut the next start would delete a cluster that has its temporary name."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
