"""The worker's settings: command line before environment before defaults."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from lem_domain.backends.registry import BackendName


def _data_dir() -> Path:
    configured = os.environ.get("LEM_DATA_DIR")
    if configured:
        return Path(configured)
    base = os.environ.get("XDG_DATA_HOME")
    return (Path(base) if base else Path.home() / ".local" / "share") / "lem"


def _token_file() -> Path:
    return _data_dir() / "owner.token"


class WorkerSettings(BaseSettings):
    """Settings of one worker; every key has a test of its effect."""

    model_config = SettingsConfigDict(env_prefix="LEM_WORKER_", frozen=True, extra="ignore", populate_by_name=True)

    backend: BackendName = Field(description="The backend of this worker.")
    server: str = Field(
        default="http://127.0.0.1:8420",
        validation_alias="LEM_SERVER",
        description="The server's address.",
    )
    token_file: Path = Field(
        default_factory=_token_file,
        validation_alias="LEM_TOKEN_FILE",
        description="A file that holds an access token with the scopes read and work.",
    )
    state_dir: Path | None = Field(default=None, description="Folder of identity and spool, kept over restarts.")
    cache_dir: Path | None = Field(default=None, description="Folder of built-in and converted models.")
    name: str | None = Field(default=None, description="Name in lists; by default the host name and the backend.")
    devices: int = Field(default=1, ge=1, le=64, description="Number of devices of a simulated worker.")
    max_runs: int | None = Field(default=None, ge=1, description="End after this number of runs.")
    until_idle: bool = Field(default=False, description="End when no run is waiting.")
    idle_check: bool = Field(
        default=True, description="Measure at the start whether sampling changes the power of a GPU at rest."
    )
    kill_grace_s: float = Field(default=10.0, ge=0, description="Seconds from SIGTERM to SIGKILL of a run's processes.")

    @property
    def state_folder(self) -> Path:
        """Folder of the worker's identity and spool."""
        return self.state_dir or _data_dir() / "workers" / self.backend.value
