"""Time and memory of the aggregation of a large run, compared with the same ITL figures by SQL over rows.

    python benchmarks/aggregate.py [--database-url postgresql://... | --no-sql]

The evidence (8 ranks, 1,000 requests each, 1,000 tokens per request, 50 ms power samples of one GPU) is generated into
a temporary folder; a new process then aggregates it, so that its peak memory is the aggregation's own. The SQL side
(the embedded PostgreSQL unless a URL names another) gets indexed, analysed rows, and only the query is timed, not the
loading. Processor time is printed next to wall time, which grows on a machine with other work.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import importlib.metadata
import math
import multiprocessing
import os
import pickle
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from lem_domain.config.experiment import ExperimentConfig
from lem_domain.evidence.codec import encode_chunk
from lem_domain.evidence.streams import SAMPLER, StreamManifest, StreamName, digest_of_digests, rank_name
from lem_domain.wire.runs import ChunkView, EffectiveConfig, StreamView
from lem_domain.wire.workers import Device, DeviceKind
from lem_server.aggregation.identity import canonical_bytes
from lem_server.aggregation.inputs import AggregationInput, ChunkSource
from lem_server.aggregation.request_table import request_table
from lem_server.aggregation.result import aggregate

IntArray = npt.NDArray[np.int64]

EPOCH_NS = 7_654_321_000_000_000
CHUNK_ROWS = 50_000
IN_FLIGHT = 50
MEAN_ITL_NS = 20_000_000
REPETITIONS = 5


class Size(NamedTuple):
    """Size of the run."""

    processes: int
    requests: int
    tokens: int


class RankTokens(NamedTuple):
    """Token times of one rank, in the order of recording."""

    request_id: IntArray
    index: IntArray  # type: ignore[assignment]  # the column's name hides tuple.index
    time_ns: IntArray


class Measurement(NamedTuple):
    """Times and memory of the new process."""

    seconds: tuple[float, ...]
    processor_s: tuple[float, ...]
    memory_before_mb: float
    memory_peak_mb: float
    itl_ms: tuple[float, float, float]
    same_bytes: bool


class RequestMeasurement(NamedTuple):
    """Time and memory of the energy of each request, and by how much its sum is off from the window's, relatively."""

    seconds: float
    memory_before_mb: float
    memory_peak_mb: float
    off: float


Measured = TypeVar("Measured", Measurement, RequestMeasurement)


def main() -> None:
    """Generate the evidence, aggregate it in a new process, print figures and compare with SQL."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--requests", type=int, default=1000, help="per process")
    parser.add_argument("--tokens", type=int, default=1000, help="per request")
    parser.add_argument("--database-url", help="a PostgreSQL for the same ITL figures, in a temporary table")
    parser.add_argument("--no-sql", action="store_true", help="skip the comparison with SQL")
    options = parser.parse_args()
    size = Size(options.processes, options.requests, options.tokens)
    print(machine_facts())
    print(f"{size.processes} processes x {size.requests} requests x {size.tokens} tokens")
    best = None
    for interleaved in (False, True):
        ranks = [rank_tokens(size, rank, interleaved=interleaved) for rank in range(size.processes)]
        with tempfile.TemporaryDirectory() as folder:
            stored_mb = store(Path(folder), size, ranks) / 1e6
            measured = in_new_process(measure, Path(folder))
            requests = in_new_process(measure_requests, Path(folder))
        order = "interleaved by step" if interleaved else "request by request"
        print(
            f"  tokens {order}: {statistics.median(measured.seconds):.2f} s median of {REPETITIONS} "
            f"({min(measured.seconds):.2f} to {max(measured.seconds):.2f}), "
            f"{statistics.median(measured.processor_s):.2f} s of processor, peak {measured.memory_peak_mb:.0f} MB "
            f"({measured.memory_before_mb:.0f} MB before), {stored_mb:.1f} MB stored, "
            f"repeated byte for byte: {measured.same_bytes}"
        )
        best = measured
        print(
            f"    energy of each request: {requests.seconds:.2f} s, peak {requests.memory_peak_mb:.0f} MB "
            f"({requests.memory_before_mb:.0f} MB before), the sum is off by {requests.off:.0e}"
        )
    if options.no_sql or best is None:
        return
    with contextlib.ExitStack() as stack:
        url = options.database_url or stack.enter_context(embedded_postgresql())
        asyncio.run(compare_with_sql(url, size, best))


@contextlib.contextmanager
def embedded_postgresql() -> Iterator[str]:
    """Run the embedded PostgreSQL in a temporary folder that its user (another one, if started by root) can access."""
    from lem_server.database.embedded import EmbeddedPostgres  # not imported in the process whose memory is measured

    with tempfile.TemporaryDirectory(prefix="lem-benchmark-") as folder:
        Path(folder).chmod(0o755)
        with EmbeddedPostgres(Path(folder) / "postgres") as postgres:
            yield postgres.url.set(drivername="postgresql").render_as_string(hide_password=False)


def machine_facts() -> str:
    """CPU, cores, memory and versions, in one line."""
    info = Path("/proc/cpuinfo")
    models = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    memory_gb = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9
    packages = " ".join(f"{name} {importlib.metadata.version(name)}" for name in ("numpy", "pyarrow", "pydantic"))
    return (
        f"{models[0] if models else platform.machine()}, {len(os.sched_getaffinity(0))} cores, {memory_gb:.0f} GB; "
        f"{platform.system()} {platform.release()}; Python {platform.python_version()}; {packages}"
    )


def rank_tokens(size: Size, rank: int, *, interleaved: bool) -> RankTokens:
    """Gamma-distributed steps; `IN_FLIGHT` requests run concurrently, then the next ones."""
    random = np.random.default_rng(rank)
    steps = random.gamma(20, MEAN_ITL_NS / 20, (size.requests, size.tokens)).astype(np.int64)
    rounds = np.arange(size.requests) // IN_FLIGHT
    begins = EPOCH_NS + rounds * int(MEAN_ITL_NS * size.tokens * 1.5)
    times = begins[:, None] + np.cumsum(steps, axis=1)
    ids = np.broadcast_to(np.arange(size.requests, dtype=np.int64)[:, None], times.shape)
    index = np.broadcast_to(np.arange(size.tokens, dtype=np.int64)[None, :], times.shape)
    flat = RankTokens(ids.ravel(), index.ravel(), times.ravel())
    if not interleaved:
        return flat
    order = np.argsort(flat.time_ns, kind="stable")
    return RankTokens(*(column[order] for column in flat))


def store(folder: Path, size: Size, ranks: Sequence[RankTokens]) -> int:
    """Write a file per chunk and the aggregation's input; return the bytes of all chunks."""
    views: list[StreamView] = []
    ends: list[int] = []
    for rank, tokens in enumerate(ranks):
        arrival = np.full(size.requests, np.iinfo(np.int64).max)
        last = np.zeros(size.requests, dtype=np.int64)
        np.minimum.at(arrival, tokens.request_id, tokens.time_ns)
        np.maximum.at(last, tokens.request_id, tokens.time_ns)
        ends.append(int(last.max()))
        none = [None] * size.requests
        requests: dict[str, Sequence[object]] = {
            "request_id": list(range(size.requests)),
            "prompt_index": list(range(size.requests)),
            "arrival_ns": (arrival - 30_000_000).tolist(),
            "scheduled_ns": (arrival - 25_000_000).tolist(),
            "first_token_ns": arrival.tolist(),
            "last_token_ns": last.tolist(),
            "prompt_tokens": [128] * size.requests,
            "cached_prompt_tokens": none,
            "generated_tokens": [size.tokens] * size.requests,
            "finish_reason": ["length"] * size.requests,
            "batch_id": none,
            "error": none,
            "released_ns": none,
        }
        views.append(write_stream(folder, rank_name(rank), StreamName.REQUESTS, requests))
        views.append(write_stream(folder, rank_name(rank), StreamName.TOKENS, tokens._asdict()))
    views.append(write_stream(folder, SAMPLER, StreamName.POWER, power_columns(max(ends))))
    processes = (*(rank_name(rank) for rank in range(size.processes)), SAMPLER)
    inputs = AggregationInput(
        run_id="run_" + "0" * 32,
        attempt_id="att_" + "0" * 32,
        config=ExperimentConfig.model_validate({"backend": "simulated", "model": "benchmark"}),
        devices=(Device(uuid="GPU-0", kind=DeviceKind.GPU, name="GPU"),),
        processes=processes,
        manifest=tuple(manifest_of(view) for view in views),
        held=tuple(views),
        summaries={name: {"warmup_converged": True, "warmup_requests": 5} for name in processes},
        effective_config=EffectiveConfig(engine="benchmark", parameters=()),
    )
    (folder / "inputs").write_bytes(pickle.dumps(inputs))
    return sum(chunk.bytes for view in views for chunk in view.chunks)


def power_columns(end_ns: int) -> dict[str, Sequence[object]]:
    """Samples of one GPU every 50 ms, around the whole window."""
    times = np.arange(EPOCH_NS - 10**9, end_ns + 10**9, 50_000_000)
    watts = 300 + 50 * np.sin(np.arange(len(times)) / 40)
    columns: dict[str, Sequence[object]] = {
        "device_index": [0] * len(times),
        "time_ns": times.tolist(),
        "power_mw": (watts * 1e3).astype(np.int64).tolist(),
        "energy_mj": np.cumsum(watts * 50).astype(np.int64).tolist(),
    }
    # Like the nvml source: every fourth sample has the slow readings.
    slow = {"memory_used_bytes": 60 * 10**9, "gpu_percent": 98, "memory_percent": 60, "temperature_c": 70}
    slow |= {"sm_clock_mhz": 1700, "memory_clock_mhz": 2600, "throttle_reasons": 4}
    slow |= {f"{policy}_violation_ns": 0 for policy in ("power", "thermal", "board", "reliability")}
    for name, value in slow.items():
        columns[name] = [None if number % 4 else value for number in range(len(times))]
    return columns


def write_stream(
    folder: Path, process: str, stream: StreamName, columns: dict[str, Sequence[object]] | dict[str, IntArray]
) -> StreamView:
    """Write a stream as chunks of `CHUNK_ROWS` rows, one file each."""
    chunks: list[ChunkView] = []
    count = len(next(iter(columns.values())))
    for seq, start in enumerate(range(0, count, CHUNK_ROWS)):
        part: dict[str, Sequence[object]] = {
            name: values[start : start + CHUNK_ROWS]  # type: ignore[misc]
            for name, values in columns.items()
        }
        body = encode_chunk(stream, part)
        (folder / f"{process}.{stream.value}.{seq}").write_bytes(body)
        rows = min(CHUNK_ROWS, count - start)
        chunks.append(ChunkView(seq=seq, rows=rows, bytes=len(body), sha256=hashlib.sha256(body).hexdigest()))
    return StreamView(process=process, stream=stream, chunks=tuple(chunks))


def manifest_of(view: StreamView) -> StreamManifest:
    """The manifest that a worker would send."""
    return StreamManifest(
        process=view.process,
        stream=view.stream,
        chunks=len(view.chunks),
        rows=sum(chunk.rows for chunk in view.chunks),
        bytes=sum(chunk.bytes for chunk in view.chunks),
        sha256=digest_of_digests(chunk.sha256 for chunk in view.chunks),
    )


def in_new_process(function: Callable[[Path], Measured], folder: Path) -> Measured:
    """Measure in a spawned process; a forked one would start with this process's peak memory."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, (folder,))


def stored_evidence(folder: Path) -> tuple[AggregationInput, ChunkSource]:
    """Return the input and the chunks that `store` wrote."""
    inputs: AggregationInput = pickle.loads((folder / "inputs").read_bytes())
    held = {(view.process, view.stream): view for view in inputs.held}

    def source(process: str, stream: StreamName) -> Iterator[tuple[int, bytes]]:
        for chunk in held[process, stream].chunks:
            yield chunk.seq, (folder / f"{process}.{stream.value}.{chunk.seq}").read_bytes()

    return inputs, source


def measure_requests(folder: Path) -> RequestMeasurement:
    """Compute the energy of each request once."""
    inputs, source = stored_evidence(folder)
    before = peak_memory_mb()
    began = time.perf_counter()
    summary, table = request_table(inputs, source)
    seconds = time.perf_counter() - began
    total, idle = summary.total.joules, summary.idle_energy_j.value
    assert total is not None and idle is not None
    off = abs(math.fsum([idle, *table["energy_j"].to_pylist()]) / total - 1)
    return RequestMeasurement(seconds, before, peak_memory_mb(), off)


def measure(folder: Path) -> Measurement:
    """Aggregate `REPETITIONS` times from the files."""
    inputs, source = stored_evidence(folder)
    before = peak_memory_mb()
    seconds: list[float] = []
    processor_s: list[float] = []
    texts: set[bytes] = set()
    for _ in range(REPETITIONS):
        began, worked = time.perf_counter(), time.process_time()
        result = aggregate(inputs, source)
        seconds.append(time.perf_counter() - began)
        processor_s.append(time.process_time() - worked)
        texts.add(canonical_bytes(result))
    itl = result.speed.itl_ms
    assert itl.mean is not None and itl.p50 is not None and itl.p99 is not None
    return Measurement(
        tuple(seconds), tuple(processor_s), before, peak_memory_mb(), (itl.mean, itl.p50, itl.p99), len(texts) == 1
    )


def peak_memory_mb() -> float:
    """Peak resident memory of this program; ru_maxrss would include the parent's, from before exec."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise RuntimeError("this needs Linux's /proc/self/status to read the peak memory")


_SQL = """
    SELECT avg(itl) / 1e6, percentile_cont(ARRAY[0.5, 0.99]) WITHIN GROUP (ORDER BY itl)
      FROM (SELECT time_ns - lag(time_ns) OVER (PARTITION BY process, request_id ORDER BY index) AS itl
              FROM benchmark_tokens) AS steps
     WHERE itl IS NOT NULL
"""


async def compare_with_sql(url: str, size: Size, ours: Measurement) -> None:
    """Load the same tokens as rows, time the query and print the ratio."""
    import asyncpg

    connection = await asyncpg.connect(url.replace("+asyncpg", ""), statement_cache_size=0)
    try:
        await connection.execute("SET work_mem = '256MB'")
        await connection.execute(
            "CREATE TEMP TABLE benchmark_tokens (process smallint, request_id integer, index integer, time_ns bigint)"
        )
        began = time.perf_counter()
        for rank in range(size.processes):
            tokens = rank_tokens(size, rank, interleaved=True)
            columns = (column.tolist() for column in tokens)
            await connection.copy_records_to_table(
                "benchmark_tokens",
                records=((rank, *row) for row in zip(*columns, strict=True)),
                columns=["process", "request_id", "index", "time_ns"],
            )
        await connection.execute("ALTER TABLE benchmark_tokens ADD PRIMARY KEY (process, request_id, index)")
        await connection.execute("ANALYZE benchmark_tokens")
        loaded = time.perf_counter() - began
        bytes_used = await connection.fetchval("SELECT pg_total_relation_size('benchmark_tokens')")
        seconds = []
        for _ in range(3):
            began = time.perf_counter()
            mean, percentiles = await connection.fetchrow(_SQL)
            seconds.append(time.perf_counter() - began)
        version = await connection.fetchval("SHOW server_version")
    finally:
        await connection.close()
    theirs = (float(mean), percentiles[0] / 1e6, percentiles[1] / 1e6)
    query, whole = statistics.median(seconds), statistics.median(ours.seconds)
    print(
        f"  SQL over rows (PostgreSQL {version}, work_mem 256 MB): {query:.2f} s median of 3 for ITL mean, p50 and p99 "
        f"alone; loading and indexing took {loaded:.0f} s and {bytes_used / 1e6:.0f} MB"
    )
    same = bool(np.allclose(theirs, ours.itl_ms, rtol=1e-9))
    print(f"  ratio {query / whole:.1f} (SQL for ITL alone / the whole aggregation); same figures: {same}")


if __name__ == "__main__":
    main()
