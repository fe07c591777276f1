"""The server's settings, from environment variables with the prefix `LEM_`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class LeaseTerms(NamedTuple):
    """How long leases last, and how often a worker sends a heartbeat."""

    ttl_s: float
    grace_s: float
    heartbeat_interval_s: float


def default_data_dir() -> Path:
    """`$XDG_DATA_HOME/lem`, or `~/.local/share/lem`."""
    base = os.environ.get("XDG_DATA_HOME")
    return (Path(base) if base else Path.home() / ".local" / "share") / "lem"


class Settings(BaseSettings):
    """The settings. `tests/unit/server/test_settings.py` requires a test of each key's effect."""

    model_config = SettingsConfigDict(env_prefix="LEM_", frozen=True, extra="ignore")

    data_dir: Path = Field(default_factory=default_data_dir, description="Embedded database and owner token.")
    database_url: str | None = Field(
        default=None, description="postgresql://user@host/database; unset starts PostgreSQL in data_dir."
    )
    database_password_file: Path | None = Field(default=None, description="A file with the URL's password.")
    host: str = Field(default="127.0.0.1", description="Address to listen on.")
    port: int = Field(default=8420, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    trusted_hosts: tuple[str, ...] = Field(
        default=("localhost", "127.0.0.1", "[::1]"), description="Accepted Host headers."
    )
    lease_ttl_s: float = Field(default=60, gt=0, description="Duration of a lease without a heartbeat.")
    lease_grace_s: float = Field(
        default=300, ge=0, description="Time after a lease's end until its run is given to another worker."
    )
    beat_interval_s: float = Field(default=15, gt=0, description="Interval between heartbeats.")
    log_level: Literal["debug", "info", "warning", "error"] = Field(default="info", description="Level of the log.")
    log_format: Literal["text", "json"] = Field(default="text", description="Format of the log.")

    @property
    def lease_terms(self) -> LeaseTerms:
        """Return the terms of leases."""
        return LeaseTerms(self.lease_ttl_s, self.lease_grace_s, self.beat_interval_s)
