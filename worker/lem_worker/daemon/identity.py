"""The worker's identity over all its boots, and the lock that admits one daemon per state folder."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from uuid import UUID, uuid4

from pydantic import BaseModel, ConfigDict

from lem_domain.errors import LemError
from lem_domain.ids import WorkerId
from lem_worker.process.spool import write_model


class StateInUse(LemError):
    """Another daemon uses the state folder."""


class Identity(BaseModel):
    """Content of `worker.json` in the state folder."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: WorkerId


class StateFolder:
    """A worker's state on disk: its identity and its spool, locked by one daemon at a time."""

    def __init__(self, folder: Path) -> None:
        """Lock the folder and read or create the identity.

        Raises:
            StateInUse: a running daemon has the lock.
            LemError: the folder can't be written.
        """
        self.spool = folder / "spool"
        try:
            self.spool.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise LemError(f"the state folder {folder} can't be used ({error.strerror}); set --state-dir.") from error
        try:
            # flock, not a file with a process id: the kernel releases it even when the daemon is killed.
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise StateInUse(
                f"another worker uses the state folder {folder}; set --state-dir to a different one."
            ) from None
        try:
            self.worker_id = self._identity(folder / "worker.json")
        except BaseException:
            self.release()
            raise
        self.boot_id: UUID = uuid4()

    def leftovers(self) -> list[Path]:
        """Folders of attempts that an earlier boot left."""
        return sorted(path for path in self.spool.iterdir() if path.is_dir())

    def release(self) -> None:
        """Release the lock."""
        os.close(self._lock)

    @staticmethod
    def _identity(path: Path) -> str:
        if not path.exists():
            write_model(path, Identity(id=f"wrk_{uuid4().hex}"))
        try:
            return Identity.model_validate_json(path.read_bytes()).id
        except ValueError:
            raise LemError(
                f"{path} holds no worker identity; remove it, and the next start creates a new identity."
            ) from None
