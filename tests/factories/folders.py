"""Where the databases of the tests lie."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

_IN_MEMORY = Path("/dev/shm")
_ROOM_BYTES = 2 * 10**9


def database_folder(prefix: str) -> Path:
    """A new folder for whoever makes a database in it; who asks removes it.

    In memory where the machine has room there: a database is a copy of hundreds of files, which takes 15 times as
    long on a disk, and none of the tests' needs to outlive a power cut.

    Not below pytest's own: each session of it closes that to other users, and as root PostgreSQL runs as another.
    """
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=_IN_MEMORY if _has_room(_IN_MEMORY) else None))
    folder.chmod(0o755)
    return folder


def _has_room(place: Path) -> bool:
    return os.access(place, os.W_OK) and shutil.disk_usage(place).free >= _ROOM_BYTES
