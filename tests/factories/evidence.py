"""Evidence from plain numbers: seconds, watts and joules in, chunks, manifest and aggregation input out.

Times are seconds after `EPOCH_NS` on the worker's clock, so that a test reads like a stopwatch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from lem_domain.config.experiment import ExperimentConfig
from lem_domain.evidence.codec import encode_chunk
from lem_domain.evidence.streams import SAMPLER, STREAMS, StreamManifest, StreamName, digest_of_digests, rank_name
from lem_domain.results.method import DEFAULT_METHOD, MethodVersion
from lem_domain.wire.runs import ChunkView, EffectiveConfig, StreamView
from lem_domain.wire.workers import Device, DeviceKind
from lem_server.aggregation.inputs import AggregationInput, AggregationParameters

EPOCH_NS = 7_654_321_000_000_000
"""About 88 days of uptime: large enough that float64 nanoseconds would lose digits."""

RUN_ID = "run_" + "1" * 32
ATTEMPT_ID = "att_" + "2" * 32

Rows = dict[str, list[Any]]


def ns(seconds: float) -> int:
    """Nanoseconds on the worker's clock."""
    return EPOCH_NS + round(seconds * 1e9)


def gpu(number: int = 0) -> Device:
    """A leased GPU."""
    return Device(uuid=f"GPU-{number}", kind=DeviceKind.GPU, name="NVIDIA L40S")


def cpu() -> Device:
    """The CPU as leased device."""
    return Device(uuid="CPU-0", kind=DeviceKind.CPU, name="Test CPU")


def simulated(number: int = 0) -> Device:
    """A leased simulated device."""
    return Device(uuid=f"SIM-{number}", kind=DeviceKind.SIMULATED, name="Simulated device")


@dataclass(frozen=True)
class MadeChunk:
    """One encoded chunk."""

    process: str
    stream: StreamName
    seq: int
    rows: int
    body: bytes

    @property
    def sha256(self) -> str:
        """Digest of the body."""
        return hashlib.sha256(self.body).hexdigest()


@dataclass
class Evidence:
    """Collects rows; `chunk_rows` rows make a chunk."""

    config: ExperimentConfig = field(
        default_factory=lambda: ExperimentConfig.model_validate({"backend": "simulated", "model": "test"})
    )
    devices: tuple[Device, ...] = field(default_factory=lambda: (gpu(),))
    processes: tuple[str, ...] = (rank_name(0), SAMPLER)
    chunk_rows: int = 1000
    summaries: dict[str, dict[str, Any]] = field(default_factory=dict)
    effective_config: EffectiveConfig | None = field(
        default_factory=lambda: EffectiveConfig(engine="simulated 1", parameters=())
    )
    rows: dict[tuple[str, StreamName], Rows] = field(default_factory=dict)
    method: MethodVersion = DEFAULT_METHOD

    def __post_init__(self) -> None:
        for process in self.processes:
            warm = {} if process == SAMPLER else {"warmup_converged": True, "warmup_requests": 5}
            self.summaries.setdefault(process, warm)

    # --- rows ---------------------------------------------------------------------------------------------------------

    def row(self, process: str, stream: StreamName, **values: Any) -> None:
        """One row of any stream; columns that are not given are null."""
        columns = self.rows.setdefault((process, stream), {column.name: [] for column in STREAMS[stream]})
        unknown = set(values) - set(columns)
        assert not unknown, f"{stream.value} has no column {unknown}"
        for name, column in columns.items():
            column.append(values.get(name))

    def request(
        self,
        request_id: int,
        arrival: float,
        tokens: Sequence[float] = (),
        *,
        rank: int = 0,
        prompt_tokens: int = 10,
        scheduled: float | None = None,
        cached: int | None = None,
        error: str | None = None,
        record_tokens: bool = True,
        prompt: int | None = None,
        batch: int | None = None,
        released: float | None = None,
    ) -> None:
        """One request with the times of its tokens, in seconds; its prompt is that of its own number unless given."""
        self.row(
            rank_name(rank),
            StreamName.REQUESTS,
            request_id=request_id,
            prompt_index=request_id if prompt is None else prompt,
            arrival_ns=ns(arrival),
            scheduled_ns=ns(scheduled) if scheduled is not None else None,
            first_token_ns=ns(tokens[0]) if tokens else None,
            last_token_ns=ns(tokens[-1]) if tokens else None,
            prompt_tokens=prompt_tokens,
            cached_prompt_tokens=cached,
            generated_tokens=len(tokens),
            finish_reason="length" if error is None else None,
            batch_id=batch,
            error=error,
            released_ns=ns(released) if released is not None else None,
        )
        if record_tokens:
            for index, time in enumerate(tokens):
                self.token(request_id, index, time, rank=rank)

    def token(self, request_id: int, index: int, time: float, *, rank: int = 0) -> None:
        """The time of one token."""
        self.row(rank_name(rank), StreamName.TOKENS, request_id=request_id, index=index, time_ns=ns(time))

    def power(
        self,
        times: Iterable[float],
        watts: Callable[[float], float] | None = None,
        joules: Callable[[float], float] | None = None,
        *,
        device: int = 0,
        process: str = SAMPLER,
        **readings: Callable[[float], int | None],
    ) -> None:
        """Samples of one device: instant power, cumulative counter and other columns, of the time in seconds."""
        for time in times:
            self.row(
                process,
                StreamName.POWER,
                device_index=device,
                time_ns=ns(time),
                power_mw=round(watts(time) * 1e3) if watts else None,
                energy_mj=int(joules(time) * 1e3) if joules else None,
                **{name: read(time) for name, read in readings.items()},
            )

    def host_power(
        self,
        domain: str,
        times: Iterable[float],
        watts: Callable[[float], float] | None = None,
        joules: Callable[[float], float] | None = None,
        *,
        method: str = "modelled",
    ) -> None:
        """Samples of one part of the host."""
        for time in times:
            self.row(
                SAMPLER,
                StreamName.HOST_POWER,
                domain=domain,
                time_ns=ns(time),
                energy_uj=int(joules(time) * 1e6) if joules else None,
                power_mw=round(watts(time) * 1e3) if watts else None,
                method=method,
            )

    def phase(self, process: str, phase: str, edge: str, time: float) -> None:
        """One phase boundary."""
        self.row(process, StreamName.PHASES, phase=phase, edge=edge, time_ns=ns(time))

    def baseline(self, context: str, begin: float, end: float, **detail: Any) -> None:
        """A baseline as the sampler marks it."""
        told = {"context": context, "stationary": True, "standard_error": 0.001, **detail}
        for edge, time, words in (("begin", begin, {"context": context}), ("end", end, told)):
            self.row(
                SAMPLER, StreamName.PHASES, phase="baseline", edge=edge, time_ns=ns(time), detail=json.dumps(words)
            )

    def event(self, process: str, kind: str, detail: str | None, time: float = 0.0) -> None:
        """One event; `detail` is JSON text."""
        self.row(process, StreamName.EVENTS, time_ns=ns(time), kind=kind, detail=detail)

    # --- what becomes of them -----------------------------------------------------------------------------------------

    def chunks(self) -> list[MadeChunk]:
        """All rows, encoded."""
        made: list[MadeChunk] = []
        for (process, stream), columns in self.rows.items():
            count = len(next(iter(columns.values())))
            for seq, start in enumerate(range(0, max(count, 1), self.chunk_rows)):
                part = {name: values[start : start + self.chunk_rows] for name, values in columns.items()}
                rows = min(self.chunk_rows, count - start)
                made.append(MadeChunk(process, stream, seq, rows, encode_chunk(stream, part)))
        return made

    def stored(self, **parameters: Any) -> Stored:
        """The evidence as the server holds it after a clean completion."""
        chunks = self.chunks()
        return Stored(
            AggregationInput(
                run_id=RUN_ID,
                attempt_id=ATTEMPT_ID,
                config=self.config,
                devices=self.devices,
                processes=self.processes,
                manifest=manifest_of(chunks),
                held=views_of(chunks),
                summaries=self.summaries,
                effective_config=self.effective_config,
                parameters=AggregationParameters(**parameters),
                method=self.method,
            ),
            tuple(chunks),
        )


@dataclass(frozen=True)
class Stored:
    """An aggregation's input together with the chunks that its source reads."""

    inputs: AggregationInput
    chunks: tuple[MadeChunk, ...]

    def source(self, process: str, stream: StreamName) -> Iterator[tuple[int, bytes]]:
        """The `ChunkSource`."""
        for chunk in self.chunks:
            if (chunk.process, chunk.stream) == (process, stream):
                yield chunk.seq, chunk.body

    def without(self, process: str, stream: StreamName, *seqs: int) -> Stored:
        """The same after chunks were lost before the server held them; the manifest still promises them."""
        kept = tuple(
            chunk
            for chunk in self.chunks
            if not ((chunk.process, chunk.stream) == (process, stream) and (not seqs or chunk.seq in seqs))
        )
        return Stored(replace(self.inputs, held=views_of(kept)), kept)


def manifest_of(chunks: Sequence[MadeChunk]) -> tuple[StreamManifest, ...]:
    """What the worker promises."""
    return tuple(
        StreamManifest(
            process=process,
            stream=stream,
            chunks=len(group),
            rows=sum(chunk.rows for chunk in group),
            bytes=sum(len(chunk.body) for chunk in group),
            sha256=digest_of_digests(chunk.sha256 for chunk in group),
        )
        for (process, stream), group in _grouped(chunks).items()
    )


def views_of(chunks: Sequence[MadeChunk]) -> tuple[StreamView, ...]:
    """What the server says that it holds."""
    return tuple(
        StreamView(
            process=process,
            stream=stream,
            chunks=tuple(
                ChunkView(seq=chunk.seq, rows=chunk.rows, bytes=len(chunk.body), sha256=chunk.sha256) for chunk in group
            ),
        )
        for (process, stream), group in _grouped(chunks).items()
    )


def _grouped(chunks: Sequence[MadeChunk]) -> dict[tuple[str, StreamName], list[MadeChunk]]:
    groups: dict[tuple[str, StreamName], list[MadeChunk]] = {}
    for chunk in sorted(chunks, key=lambda chunk: (chunk.process, chunk.stream, chunk.seq)):
        groups.setdefault((chunk.process, chunk.stream), []).append(chunk)
    return groups
