"""The worker's settings: command line, then environment, then defaults."""

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
    """Each key has a test that it takes effect."""

    model_config = SettingsConfigDict(env_prefix="LEM_WORKER_", frozen=True, extra="ignore", populate_by_name=True)

    backend: BackendName = Field(description="The backend that this worker serves.")
    server: str = Field(
        default="http://127.0.0.1:8420",
        validation_alias="LEM_SERVER",
        description="The server's address.",
    )
    token_file: Path = Field(
        default_factory=_token_file,
        validation_alias="LEM_TOKEN_FILE",
        description="A file with a token that has the scopes read and work.",
    )
    state_dir: Path | None = Field(default=None, description="Identity and spool; kept over restarts.")
    cache_dir: Path | None = Field(default=None, description="Converted models.")
    name: str | None = Field(default=None, description="Shown in lists; the host's name and the backend by default.")
    devices: int = Field(default=1, ge=1, le=64, description="Devices of a simulated worker.")
    max_runs: int | None = Field(default=None, ge=1, description="End after so many runs.")
    until_idle: bool = Field(default=False, description="End when there is nothing to do.")
    kill_grace_s: float = Field(default=10.0, ge=0, description="Between SIGTERM and SIGKILL of a run's processes.")

    @property
    def state_folder(self) -> Path:
        """Where the worker's identity and spool lie."""
        return self.state_dir or _data_dir() / "workers" / self.backend.value
