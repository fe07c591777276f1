"""The raw evidence: which streams there are, their columns with types and units, and how a stream is told whole.

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
MAX_CHUNK_RATIO = 1000
"""Decoded over encoded size; real evidence stays far below, a compression bomb does not."""

SAMPLER = "sampler"
"""The process name of the power sampler; ranks are `rank-0`, `rank-1`, and so on."""

ProcessName = Annotated[str, StringConstraints(pattern=r"^(rank-(0|[1-9][0-9]{0,3})|sampler)$")]

ColumnType = Literal["int64", "int32", "float64", "string"]


def rank_name(rank: int) -> str:
    """The process name of a rank."""
    return f"rank-{rank}"


class StreamName(StrEnum):
    """The streams of version 1."""

    REQUESTS = "requests"
    TOKENS = "tokens"
    POWER = "power"
    HOST_POWER = "host_power"
    PHASES = "phases"
    EVENTS = "events"


class Column(NamedTuple):
    """One column of a stream."""

    name: str
    type: ColumnType
    unit: str | None
    nullable: bool
    description: str


class PhaseName(StrEnum):
    """What a process was doing."""

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


STREAMS: dict[StreamName, tuple[Column, ...]] = {
    StreamName.REQUESTS: (
        Column("request_id", "int64", None, False, "Number of the request within its process."),
        Column("prompt_index", "int32", None, False, "Index into the experiment's list of prompts."),
        Column("arrival_ns", "int64", "ns", False, "When the request was released to the backend."),
        Column("scheduled_ns", "int64", "ns", True, "When the engine began to work on it, where it tells."),
        Column("first_token_ns", "int64", "ns", True, "When its first token was there."),
        Column("last_token_ns", "int64", "ns", True, "When its last token was there."),
        Column("prompt_tokens", "int32", "tokens", False, "Without padding."),
        Column("cached_prompt_tokens", "int32", "tokens", True, "Prompt tokens served from a prefix cache."),
        Column("generated_tokens", "int32", "tokens", False, "Without padding and what follows the end of sequence."),
        Column("finish_reason", "string", None, True, "length or stop."),
        Column("batch_id", "int64", None, True, "Requests that were decoded in lockstep share it."),
        Column("error", "string", None, True, "Why the request failed."),
        Column("released_ns", "int64", "ns", True, "When it was handed to the engine, where that is not its arrival."),
    ),
    StreamName.TOKENS: (
        Column("request_id", "int64", None, False, "Number of the request within its process."),
        Column("index", "int32", None, False, "Number of the token within its request, from 0."),
        Column("time_ns", "int64", "ns", False, "When the token was there."),
    ),
    StreamName.POWER: (
        Column("device_index", "int32", None, False, "Index into the devices of the attempt."),
        Column("time_ns", "int64", "ns", False, "When the sample was taken."),
        Column("power_mw", "int64", "mW", True, "Instant power."),
        Column("energy_mj", "int64", "mJ", True, "Cumulative energy counter."),
        Column("memory_used_bytes", "int64", "B", True, "Memory in use on the device, by everybody."),
        Column("gpu_percent", "int32", "%", True, "Utilisation of the compute units."),
        Column("memory_percent", "int32", "%", True, "Utilisation of the memory interface."),
        Column("temperature_c", "int32", "°C", True, "Temperature of the chip."),
        Column("sm_clock_mhz", "int32", "MHz", True, "Compute clock."),
        Column("memory_clock_mhz", "int32", "MHz", True, "Memory clock."),
        Column("throttle_reasons", "int64", None, True, "Bit mask as the driver gives it."),
    ),
    StreamName.HOST_POWER: (
        Column("domain", "string", None, False, "package, dram, or another part of the host."),
        Column("time_ns", "int64", "ns", False, "When the sample was taken."),
        Column("energy_uj", "int64", "µJ", True, "Cumulative energy counter."),
        Column("power_mw", "int64", "mW", True, "Mean power since the last sample, or instant power."),
        Column("method", "string", None, False, "counter, integrated or modelled."),
    ),
    StreamName.PHASES: (
        Column("phase", "string", None, False, "Name of the phase."),
        Column("edge", "string", None, False, "begin or end."),
        Column("time_ns", "int64", "ns", False, "When."),
        Column("detail", "string", None, True, "JSON, or null."),
    ),
    StreamName.EVENTS: (
        Column("time_ns", "int64", "ns", False, "When."),
        Column("kind", "string", None, False, "What happened."),
        Column("detail", "string", None, True, "JSON, or null."),
    ),
}
"""Every stream's columns, in order. The time column of a stream is the first one named `time_ns` or `arrival_ns`."""


class StreamManifest(BaseModel):
    """What one stream of one process consists of; `complete` is refused unless the server holds exactly this."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    process: ProcessName
    stream: StreamName
    chunks: int = Field(ge=1, description="Chunks, numbered from 0 without a gap.")
    rows: int = Field(ge=0)
    bytes: int = Field(ge=0, description="Bytes on the wire, all chunks together.")
    sha256: Sha256 = Field(description="Digest over the ordered chunk digests (see digest_of_digests).")


def digest_of_digests(chunk_digests: Iterable[str]) -> str:
    """SHA-256 over the concatenated binary digests of a stream's chunks in the order of their numbers."""
    whole = hashlib.sha256()
    for digest in chunk_digests:
        whole.update(bytes.fromhex(digest))
    return whole.hexdigest()
