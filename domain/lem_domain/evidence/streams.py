"""The streams of raw evidence: their columns with types and units, and the manifest that proves them complete.

All times are integer nanoseconds of CLOCK_MONOTONIC on the worker's host. A chunk is one Apache Arrow IPC stream with
zstd-compressed buffers (see `lem_domain.evidence.codec`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from enum import StrEnum
from typing import Annotated, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from lem_domain.ids import Sha256

STREAM_VERSION = 1
CHUNK_MEDIA_TYPE = "application/vnd.apache.arrow.stream"
MAX_CHUNK_BYTES = 4 * 2**20
MAX_CHUNK_DECODED_BYTES = 32 * 2**20
"""Both bound the server's memory per upload, far above the 256 KiB at which a worker seals a chunk."""
MAX_CHUNK_RATIO = 1000
"""Limit of decoded over encoded size, far above real evidence, against compression bombs."""

SAMPLER = "sampler"
"""The process name of the power sampler; ranks are `rank-0`, `rank-1`, and so on."""

ProcessName = Annotated[str, StringConstraints(pattern=r"^(rank-(0|[1-9][0-9]{0,3})|sampler)$")]

ColumnType = Literal["int64", "int32", "float64", "string"]


def rank_name(rank: int) -> str:
    """Return the process name of a rank."""
    return f"rank-{rank}"


class StreamName(StrEnum):
    """The streams of version 1."""

    REQUESTS = "requests"
    TOKENS = "tokens"
    POWER = "power"
    HOST_POWER = "host_power"
    PHASES = "phases"
    EVENTS = "events"


class StreamColumn(NamedTuple):
    """One column of a stream."""

    name: str
    type: ColumnType
    unit: str | None
    nullable: bool
    description: str


class PhaseName(StrEnum):
    """Phases of a process."""

    LOAD = "load"
    COMPILE = "compile"
    BASELINE = "baseline"
    WARMUP = "warmup"
    SETTLE = "settle"
    MEASURE = "measure"
    PREFILL = "prefill"
    DECODE = "decode"
    PREFILL_PROBE = "prefill_probe"
    QUALITY = "quality"


STREAMS: dict[StreamName, tuple[StreamColumn, ...]] = {
    StreamName.REQUESTS: (
        StreamColumn("request_id", "int64", None, False, "Number of the request within its process."),
        StreamColumn("prompt_index", "int32", None, False, "Index into the experiment's list of prompts."),
        StreamColumn("arrival_ns", "int64", "ns", False, "When the request was released to the backend."),
        StreamColumn("scheduled_ns", "int64", "ns", True, "When the engine began to work on it, if it reports that."),
        StreamColumn("first_token_ns", "int64", "ns", True, "When its first token was available."),
        StreamColumn("last_token_ns", "int64", "ns", True, "When its last token was available."),
        StreamColumn("prompt_tokens", "int32", "tokens", False, "Without padding."),
        StreamColumn("cached_prompt_tokens", "int32", "tokens", True, "Prompt tokens served from a prefix cache."),
        StreamColumn(
            "generated_tokens", "int32", "tokens", False, "Without padding and tokens after the end of sequence."
        ),
        StreamColumn("finish_reason", "string", None, True, "length or stop."),
        StreamColumn("batch_id", "int64", None, True, "Requests that were decoded in lockstep share it."),
        StreamColumn("error", "string", None, True, "Why the request failed."),
        StreamColumn("released_ns", "int64", "ns", True, "When the engine received it, if that is not its arrival."),
    ),
    StreamName.TOKENS: (
        StreamColumn("request_id", "int64", None, False, "Number of the request within its process."),
        StreamColumn("index", "int32", None, False, "Number of the token within its request, from 0."),
        StreamColumn("time_ns", "int64", "ns", False, "When the token was available."),
    ),
    StreamName.POWER: (
        StreamColumn("device_index", "int32", None, False, "Index into the devices of the attempt."),
        StreamColumn("time_ns", "int64", "ns", False, "When the sample was taken."),
        StreamColumn("power_mw", "int64", "mW", True, "Instant power."),
        StreamColumn("energy_mj", "int64", "mJ", True, "Cumulative energy counter."),
        StreamColumn("memory_used_bytes", "int64", "B", True, "Memory in use on the device, by all processes."),
        StreamColumn("gpu_percent", "int32", "%", True, "Utilisation of the compute units."),
        StreamColumn("memory_percent", "int32", "%", True, "Utilisation of the memory interface."),
        StreamColumn("temperature_c", "int32", "°C", True, "Temperature of the chip."),
        StreamColumn("sm_clock_mhz", "int32", "MHz", True, "Compute clock."),
        StreamColumn("memory_clock_mhz", "int32", "MHz", True, "Memory clock."),
        StreamColumn("throttle_reasons", "int64", None, True, "Bit mask as the driver gives it."),
        StreamColumn("power_violation_ns", "int64", "ns", True, "Time below the set clocks for power, a counter."),
        StreamColumn("thermal_violation_ns", "int64", "ns", True, "Time below the set clocks for heat, a counter."),
        StreamColumn("board_violation_ns", "int64", "ns", True, "Time below them for the board's limit, a counter."),
        StreamColumn("reliability_violation_ns", "int64", "ns", True, "Time below them for reliability, a counter."),
    ),
    StreamName.HOST_POWER: (
        StreamColumn("domain", "string", None, False, "package, dram, or another part of the host."),
        StreamColumn("time_ns", "int64", "ns", False, "When the sample was taken."),
        StreamColumn("energy_uj", "int64", "µJ", True, "Cumulative energy counter."),
        StreamColumn("power_mw", "int64", "mW", True, "Mean power since the last sample, or instant power."),
        StreamColumn("method", "string", None, False, "counter, integrated or modelled."),
    ),
    StreamName.PHASES: (
        StreamColumn("phase", "string", None, False, "Name of the phase."),
        StreamColumn("edge", "string", None, False, "begin or end."),
        StreamColumn("time_ns", "int64", "ns", False, "When."),
        StreamColumn("detail", "string", None, True, "JSON, or null."),
    ),
    StreamName.EVENTS: (
        StreamColumn("time_ns", "int64", "ns", False, "When."),
        StreamColumn("kind", "string", None, False, "What happened."),
        StreamColumn("detail", "string", None, True, "JSON, or null."),
    ),
}
"""Every stream's columns, in order. The time column of a stream is the first one named `time_ns` or `arrival_ns`."""

ADDED_COLUMNS: dict[StreamName, frozenset[str]] = {
    StreamName.POWER: frozenset(
        {"power_violation_ns", "thermal_violation_ns", "board_violation_ns", "reliability_violation_ns"}
    )
}
"""Nullable columns that older chunks of the same version lack; in those all their values are null."""


class StreamManifest(BaseModel):
    """The chunks of one stream of one process. `complete` is refused unless the server has exactly these."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    process: ProcessName
    stream: StreamName
    chunks: int = Field(ge=1, description="Chunks, numbered from 0 without a gap.")
    rows: int = Field(ge=0)
    bytes: int = Field(ge=0, description="Bytes of all chunks on the wire.")
    sha256: Sha256 = Field(description="Digest over the ordered chunk digests (see digest_of_digests).")


def digest_of_digests(chunk_digests: Iterable[str]) -> str:
    """Return the SHA-256 over the concatenated binary digests of a stream's chunks, in order of their numbers."""
    whole = hashlib.sha256()
    for digest in chunk_digests:
        whole.update(bytes.fromhex(digest))
    return whole.hexdigest()
