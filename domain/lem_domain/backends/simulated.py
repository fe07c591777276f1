"""The simulated backend: its configuration section and descriptor.

Its latencies and power are known exactly, for tests, fault drills and first steps without an engine.
"""

from __future__ import annotations

from typing import Final, Literal, Self

from pydantic import Field, model_validator

from lem_domain.backends.spec import BackendSpec
from lem_domain.config.model_base import ConfigModel, unit


class SimulatedFailure(ConfigModel):
    """A failure that the simulated backend produces."""

    at: Literal["load", "warmup", "measure", "cleanup"] = Field(
        description="The phase in which it happens; in cleanup everything is measured already."
    )
    how: Literal["raise", "out_of_memory", "hang", "silence", "exit", "kill", "abort", "segfault"] = Field(
        description="raise: an engine error; out_of_memory: an error of lacking memory; hang: it stops; silence: it "
        "works without progress; exit: the process ends with code 3; kill, abort, segfault: it is killed by SIGKILL, "
        "SIGABRT or SIGSEGV."
    )
    process: int = Field(default=0, ge=0, description="The rank that fails, from 0.", json_schema_extra=unit("1"))


class SimulatedPower(ConfigModel):
    """Power that changes: from `power_w` to `peak_w` and back, in a shape whose integral is known."""

    shape: Literal["ramp", "sawtooth", "burst"] = Field(
        description="ramp: rises evenly over `period_s` and stays; sawtooth: rises so in every period; burst: "
        "`peak_w` for the first `duty` of every period, else `power_w`."
    )
    peak_w: float = Field(ge=0, le=10_000, description="The other end of the shape.", json_schema_extra=unit("W"))
    period_s: float = Field(gt=0, le=86_400, description="Length of the shape.", json_schema_extra=unit("s"))
    duty: float = Field(
        default=0.5, gt=0, lt=1, description="Part of a period that a burst lasts.", json_schema_extra=unit("1")
    )


class SimulatedConfig(ConfigModel):
    """Settings of the simulated backend: its latencies, power and failures."""

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
        description="Power of each simulated device; constant unless `power` is set.",
        json_schema_extra=unit("W"),
    )
    power: SimulatedPower | None = Field(
        default=None, description="How power changes, from the moment when sampling begins."
    )
    fail: SimulatedFailure | None = Field(default=None, description="A failure to produce.")
    failed_share: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Share of the window's requests that fail after their first token, spread evenly.",
        json_schema_extra=unit("1"),
    )
    nondeterministic: bool = Field(
        default=False,
        description="Every repetition of the prompts gets other answers, as from non-deterministic kernels.",
    )
    misreport: tuple[Literal["batch_size", "num_processes"], ...] = Field(
        default=(),
        description="Parameters that the backend reads back with a wrong value.",
    )

    @model_validator(mode="after")
    def _failing_process_exists(self) -> Self:
        if self.fail is not None and self.fail.process >= self.num_processes:
            raise ValueError(
                f"fail.process is {self.fail.process} but there are only {self.num_processes} processes; "
                "lower it or raise num_processes"
            )
        return self


def _processes(settings: SimulatedConfig) -> int:
    return settings.num_processes


SPEC: Final = BackendSpec(
    name="simulated",
    title="simulated",
    section=SimulatedConfig,
    implementation="lem_worker.backends.simulated.backend:SimulatedBackend",
    extra="worker",
    install_hint="install llm-energy-measurement[worker] in this worker's environment",
    processes=_processes,
    presets={"throughput": {"batch_size": 32}, "latency": {"batch_size": 1}},
    is_simulated=True,
)
