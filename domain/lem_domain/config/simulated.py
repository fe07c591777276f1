"""The simulated tier: a backend whose truth is known, for tests, fault drills and first steps without an engine."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from lem_domain.config.model_base import ConfigModel, unit


class SimulatedFailure(ConfigModel):
    """A failure that the simulated backend produces on purpose."""

    at: Literal["load", "warmup", "measure", "cleanup"] = Field(
        description="The phase in which it happens; in cleanup everything is measured already."
    )
    how: Literal["raise", "out_of_memory", "hang", "exit", "kill"] = Field(
        description="raise: an engine error; out_of_memory: the engine says so; hang: no progress any more; "
        "exit: the process ends with code 3; kill: it dies by SIGKILL."
    )
    process: int = Field(default=0, ge=0, description="The rank that fails, from 0.", json_schema_extra=unit("1"))


class SimulatedConfig(ConfigModel):
    """The truth of the simulated backend: latencies, power and failures."""

    batch_size: int = Field(
        default=1, ge=1, le=4096, description="Requests that are decoded together.", json_schema_extra=unit("requests")
    )
    num_processes: int = Field(
        default=1,
        ge=1,
        le=64,
        description="Ranks; the prompts are divided among them.",
        json_schema_extra=unit("processes"),
    )
    prefill_ms_per_token: float = Field(
        default=0.01, ge=0, le=1000, description="Prefill time per prompt token.", json_schema_extra=unit("ms")
    )
    decode_ms_per_token: float = Field(
        default=1.0, ge=0, le=1000, description="Time of one decode step.", json_schema_extra=unit("ms")
    )
    jitter: float = Field(
        default=0.0,
        ge=0,
        le=0.9,
        description="Relative half-width of a seeded uniform spread on every step.",
        json_schema_extra=unit("1"),
    )
    load_s: float = Field(
        default=0.0, ge=0, le=3600, description="Time that loading takes.", json_schema_extra=unit("s")
    )
    power_w: float = Field(
        default=100.0,
        ge=0,
        le=10_000,
        description="Constant power of each simulated device.",
        json_schema_extra=unit("W"),
    )
    fail: SimulatedFailure | None = Field(default=None, description="A failure to produce.")
    misreport: tuple[Literal["batch_size"], ...] = Field(
        default=(),
        description="Parameters that the backend reads back with a wrong value, as an engine that lies would.",
    )

    @model_validator(mode="after")
    def _failing_process_exists(self) -> Self:
        if self.fail is not None and self.fail.process >= self.num_processes:
            raise ValueError(
                f"fail.process is {self.fail.process} but there are only {self.num_processes} processes; "
                "lower it or raise num_processes"
            )
        return self
