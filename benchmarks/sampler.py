"""Cost of the sampler, and how well it keeps its cadence.

    python benchmarks/sampler.py [--seconds 30] [--interval-ms 50] [--devices 1]

The real sampler process runs with each source in turn:

- `simulated`, which reads nothing: the figures are the sampler's own and include no driver. More than 1 % of a core
  at 50 ms or slower on one device is an error.
- `nvml` over the simulated NVML of the tests, if a C compiler is installed. That library checks its state file at
  every call, so the figure includes the library's cost instead of a driver's; it has no limit.
- `codecarbon`, if it can be opened; its tasks are most of the figure, which has no limit.

The peer in the same run is a loop that reads and then sleeps for the interval, as monitoring threads usually do. Each
of its intervals is longer by its own work and lateness, so it drifts.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from fakes.nvml.library import SimulatedNvml, built  # type: ignore[import-not-found]  # a part of the tests
from lem_domain.config.experiment import ExperimentConfig
from lem_domain.evidence.codec import decode_chunk
from lem_domain.evidence.streams import SAMPLER, StreamName
from lem_domain.wire.workers import Device, DeviceKind
from lem_worker.process import spool
from lem_worker.process.protocol import (
    CONTROL_IN,
    CONTROL_OUT,
    Done,
    SamplerJob,
    SamplingStarted,
    Stop,
    encode,
    from_process,
)

MOST_SHARE = 0.01
CHECKED_MS = 50
"""The default interval, from which on the limit applies; a shorter one may cost more."""

REMARKS = {
    "nvml": " (including the cost of the simulated library)",
    "codecarbon": " (read once a second; including CodeCarbon's own cost)",
}


class Cadence(NamedTuple):
    """Intervals between samples in ms, and the distance of the last sample from its deadline on the grid."""

    intervals_ms: np.ndarray[tuple[int], np.dtype[np.float64]]
    drift_ms: float


def cadence(times_ns: np.ndarray[tuple[int], np.dtype[np.int64]], interval_ms: float) -> Cadence:
    """Compute the cadence of samples with a nominal interval."""
    intervals = np.diff(times_ns) / 1e6
    return Cadence(intervals, float((times_ns[-1] - times_ns[0]) / 1e6 - interval_ms * len(intervals)))


class SamplerRun(NamedTuple):
    """One run of the sampler: its cadence, its CPU time as a share of a core, and its last message."""

    source: str
    cadence: Cadence
    share: float
    done: Done


GPU = "GPU-{:08d}-0000-0000-0000-000000000000"


def simulated_gpus(nvml: SimulatedNvml, devices: int) -> None:
    """Write the state of GPUs that offer every reading of the sampler."""
    nvml.write(
        f"origin_ns {time.monotonic_ns()}",
        *(
            line
            for n in range(devices)
            for line in (
                f'device {n} uuid {GPU.format(n)} name "NVIDIA H100" memory_total 80000 memory_used 500',
                f"power {n} sawtooth 100 300 2000",
                *(f"{quantity} {n} constant 40" for quantity in ("temperature", "sm_clock", "memory_clock")),
                *(f"{quantity} {n} constant 40" for quantity in ("gpu_use", "memory_use", "throttle")),
            )
        ),
    )


def run_sampler(folder: Path, source: str, options: argparse.Namespace) -> SamplerRun | str:
    """Run the real process; return the reason where the source can't be opened on this machine."""
    environment = dict(os.environ)
    kind, uuid = {"nvml": (DeviceKind.GPU, GPU), "codecarbon": (DeviceKind.CPU, "CPU-{}")}.get(
        source, (DeviceKind.SIMULATED, "SIM-{}")
    )
    if source == "nvml":
        if shutil.which("cc") is None:
            return "the simulated NVML needs a C compiler"
        nvml = SimulatedNvml(built(folder), folder / "nvml.state")
        simulated_gpus(nvml, options.devices)
        environment = nvml.environment()
    config = ExperimentConfig.model_validate(
        {
            "backend": "simulated" if source == "simulated" else "pytorch",
            "model": "m",
            "energy": {"interval_ms": options.interval_ms, "sources": [source]},
        }
    )
    leased = tuple(Device(uuid=uuid.format(n), kind=kind, name="device") for n in range(options.devices))
    job = SamplerJob(attempt_id="benchmark", config=config, spool=str(folder / "spool"), devices=leased)
    (folder / "spool").mkdir()
    (folder / "job.json").write_text(job.model_dump_json())
    theirs_in, write_fd = os.pipe()
    read_fd, theirs_out = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-m", "lem_worker.sampler.main", str(folder / "job.json")],
        env={**environment, CONTROL_IN: str(theirs_in), CONTROL_OUT: str(theirs_out)},
        pass_fds=(theirs_in, theirs_out),
    )
    os.close(theirs_in)
    os.close(theirs_out)
    done: Done | None = None
    reason: str | None = None
    with os.fdopen(read_fd, "rb") as lines:
        for line in lines:
            match from_process.validate_json(line):
                case SamplingStarted() as opened:
                    [report] = opened.sources
                    reason = None if report.opened else report.reason
                    wait_s = options.seconds if report.opened else 0.0
                    threading.Timer(wait_s, lambda: os.write(write_fd, encode(Stop()))).start()
                case Done() as done:
                    pass
    os.close(write_fd)
    if process.wait() or done is None:
        sys.exit("the sampler failed; see its output above.")
    if reason is not None:
        return reason
    share = float(str(done.summary["cpu_s"])) / float(str(done.summary["duration_s"]))
    return SamplerRun(source, cadence(times_of(folder / "spool"), options.interval_ms), share, done)


def times_of(folder: Path) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Times of the samples of the first device or domain."""
    times: list[int] = []
    first: object = None
    for chunk in spool.sealed_chunks(folder):
        if chunk.process != SAMPLER or chunk.stream not in (StreamName.POWER, StreamName.HOST_POWER):
            continue
        for row in decode_chunk(chunk.stream, chunk.path.read_bytes()).to_pylist():
            part = row.get("device_index", row.get("domain"))
            first = part if first is None else first
            if part == first:
                times.append(row["time_ns"])
    return np.array(times[1:-1])  # `open` and `close` take the first and the last sample, which are not on the grid


def run_peer(interval_ms: float, seconds: float) -> Cadence:
    """Read the clock and sleep for the interval, repeatedly."""
    times = []
    end = time.monotonic_ns() + round(seconds * 1e9)
    while (now := time.monotonic_ns()) < end:
        times.append(now)
        time.sleep(interval_ms / 1e3)
    return cadence(np.array(times), interval_ms)


def line(name: str, found: Cadence, interval_ms: float) -> str:
    """One row of the table: percentiles of the deviation from the interval, and the drift."""
    off = np.abs(found.intervals_ms - interval_ms)
    p50, p99 = np.percentile(off, [50, 99])
    return f"{name:<22} {p50:>8.3f} {p99:>8.3f} {off.max():>8.3f} {found.drift_ms:>12.1f}"


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--interval-ms", type=int, default=50)
    parser.add_argument("--devices", type=int, default=1)
    options = parser.parse_args()
    runs: list[SamplerRun] = []
    skipped: list[str] = []
    for source in ("simulated", "nvml", "codecarbon"):
        with tempfile.TemporaryDirectory() as folder:
            ran = run_sampler(Path(folder), source, options)
        if isinstance(ran, SamplerRun):
            runs.append(ran)
        else:
            skipped.append(f"{source} is skipped: {ran}")
    peer = run_peer(options.interval_ms, options.seconds)
    print(f"{options.devices} device(s) every {options.interval_ms} ms for {options.seconds:g} s\n")
    print(f"{'':<22} {'interval deviation, ms':^26} {'drift':>12}")
    print(f"{'':<22} {'p50':>8} {'p99':>8} {'max':>8} {'at end, ms':>12}")
    for ran in runs:
        if ran.source != "codecarbon":  # read once a second, with any interval
            print(line(f"sampler, {ran.source}", ran.cadence, options.interval_ms))
    print(line("read-and-sleep loop", peer, options.interval_ms))
    print()
    for ran in runs:
        summary = ran.done.summary
        print(
            f"{ran.source:<12} {ran.share:.2%} of a core; {summary['late']} late and {summary['missed']} missed of "
            f"{summary['ticks']} ticks{REMARKS.get(ran.source, '')}"
        )
    print("\n".join(skipped))
    own = runs[0].share
    if options.devices == 1 and options.interval_ms >= CHECKED_MS and own > MOST_SHARE:
        sys.exit(
            f"the sampler's own share is {own:.2%} of a core, more than {MOST_SHARE:.0%}; repeat on an idle machine, "
            "and if the result is the same, find what made the sampler slower."
        )


if __name__ == "__main__":
    main()
