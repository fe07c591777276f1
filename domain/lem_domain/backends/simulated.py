"""The simulated backend: its configuration section and descriptor.

Its latencies and power are known exactly, for tests, fault drills and first steps without an engine.
"""

from __future__ import annotations

from typing import Final, Literal, Self

from pydantic import Field, model_validator

from lem_domain.backends.spec import BackendSpec
from lem_domain.config.model_base import ConfigModel, extras, key


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
    process: int = key(0, "The rank that fails, from 0.", ge=0, unit="1")


class SimulatedPower(ConfigModel):
    """Power that changes: from `power_w` to `peak_w` and back, in a shape whose integral is known."""

    shape: Literal["ramp", "sawtooth", "burst"] = Field(
        description="ramp: rises evenly over `period_s` and stays; sawtooth: rises so in every period; burst: "
        "`peak_w` for the first `duty` of every period, else `power_w`."
    )
    peak_w: float = Field(
        ge=0, le=10_000, description="The other end of the shape.", json_schema_extra=extras(unit="W")
    )
    period_s: float = Field(gt=0, le=86_400, description="Length of the shape.", json_schema_extra=extras(unit="s"))
    duty: float = key(0.5, "Part of a period that a burst lasts.", gt=0, lt=1, unit="1")


class SimulatedConfig(ConfigModel):
    """Settings of the simulated backend: its latencies, power and failures."""

    batch_size: int = key(1, "Requests that are decoded together.", ge=1, le=4096, unit="requests")
    num_processes: int = key(1, "Ranks; the prompts are divided among them.", ge=1, le=64, unit="processes")
    prefill_ms_per_token: float = key(0.01, "Prefill time per prompt token.", ge=0, le=1000, unit="ms")
    decode_ms_per_token: float = key(1.0, "Time of one decode step.", ge=0, le=1000, unit="ms")
    jitter: float = key(0.0, "Relative half-width of a seeded uniform spread on every step.", ge=0, le=0.9, unit="1")
    load_s: float = key(0.0, "Time that loading takes.", ge=0, le=3600, unit="s")
    power_w: float = key(
        100.0, "Power of each simulated device; constant unless `power` is set.", ge=0, le=10_000, unit="W"
    )
    power: SimulatedPower | None = key(None, "How power changes, from the moment when sampling begins.")
    fail: SimulatedFailure | None = key(None, "A failure to produce.")
    failed_share: float = key(
        0.0, "Share of the window's requests that fail after their first token, spread evenly.", ge=0, le=1, unit="1"
    )
    nondeterministic: bool = key(
        False, "Every repetition of the prompts gets other answers, as from non-deterministic kernels."
    )
    misreport: tuple[Literal["batch_size", "num_processes"], ...] = key(
        (), "Parameters that the backend reads back with a wrong value."
    )

    @model_validator(mode="after")
    def _failing_process_exists(self) -> Self:
        if self.fail is not None and self.fail.process >= self.num_processes:
            raise ValueError(
                f"fail.process is {self.fail.process} but there are only {self.num_processes} processes; "
                "lower it or raise num_processes"
            )
        return self


SPEC: Final = BackendSpec(
    name="simulated",
    title="simulated",
    section=SimulatedConfig,
    implementation="lem_worker.backends.simulated.backend:SimulatedBackend",
    extra="worker",
    sequences_key="batch_size",
    install_hint="install llm-energy-measurement[worker] in this worker's environment",
    processes=lambda settings: settings.num_processes,
    presets={"throughput": {"batch_size": 32}, "latency": {"batch_size": 1}},
    is_simulated=True,
)
