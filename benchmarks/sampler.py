"""What the sampler costs, and how well it keeps its cadence.

    python benchmarks/sampler.py [--seconds 30] [--interval-ms 50] [--devices 1]

The real sampler process runs with simulated devices, so that the figures are its own and not a driver's. Beside it, in
the same run, the peer: a loop that reads and then sleeps for the interval, as monitoring threads usually do, whose
cadence is the interval plus its own work and lateness, for ever.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lem_domain.config.experiment import ExperimentConfig
from lem_domain.evidence import SAMPLER, StreamName
from lem_domain.evidence_codec import decode_chunk
from lem_domain.wire.workers import Device, DeviceKind
from lem_worker import spool
from lem_worker.process_protocol import CONTROL_IN, CONTROL_OUT, Done, SamplerJob, Stop, decode_from_process, encode


class Cadence(NamedTuple):
    """Distances of samples in ms, and how far the last sample is from where the grid has it."""

    intervals_ms: np.ndarray[tuple[int], np.dtype[np.float64]]
    drift_ms: float


def cadence(times_ns: np.ndarray[tuple[int], np.dtype[np.int64]], interval_ms: float) -> Cadence:
    """Of samples that should come every interval."""
    intervals = np.diff(times_ns) / 1e6
    return Cadence(intervals, float((times_ns[-1] - times_ns[0]) / 1e6 - interval_ms * len(intervals)))


def run_sampler(folder: Path, config: ExperimentConfig, devices: int, seconds: float) -> tuple[Cadence, float, Done]:
    """The real process; its cadence, and its CPU time as a share of a core."""
    leased = tuple(Device(uuid=f"SIM-{n}", kind=DeviceKind.SIMULATED, name="simulated") for n in range(devices))
    job = SamplerJob(attempt_id="benchmark", config=config, spool=str(folder / "spool"), devices=leased)
    (folder / "spool").mkdir()
    (folder / "job.json").write_text(job.model_dump_json())
    theirs_in, write_fd = os.pipe()
    read_fd, theirs_out = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-m", "lem_worker.energy.sampler", str(folder / "job.json")],
        env={**os.environ, CONTROL_IN: str(theirs_in), CONTROL_OUT: str(theirs_out)},
        pass_fds=(theirs_in, theirs_out),
    )
    os.close(theirs_in)
    os.close(theirs_out)
    threading.Timer(seconds, lambda: os.write(write_fd, encode(Stop()))).start()
    done: Done | None = None
    with os.fdopen(read_fd, "rb") as lines:
        for line in lines:
            message = decode_from_process(line)
            if isinstance(message, Done):
                done = message
    if process.wait() or done is None:
        sys.exit("the sampler failed; what it wrote stands above.")
    tables = [
        decode_chunk(StreamName.POWER, chunk.path.read_bytes())
        for chunk in spool.chunks(folder / "spool")
        if chunk.process == SAMPLER and chunk.stream is StreamName.POWER
    ]
    rows = [table.filter(table["device_index"].to_numpy() == 0)["time_ns"].to_numpy() for table in tables]
    times = np.concatenate(rows)[1:-1]  # the first and the last are read off the grid
    share = float(str(done.summary["cpu_s"])) / float(str(done.summary["duration_s"]))
    return cadence(times, config.energy.interval_ms), share, done


def run_peer(interval_ms: float, seconds: float) -> Cadence:
    """Read the clock, sleep for the interval, and so on."""
    times = []
    end = time.monotonic_ns() + round(seconds * 1e9)
    while (now := time.monotonic_ns()) < end:
        times.append(now)
        time.sleep(interval_ms / 1e3)
    return cadence(np.array(times), interval_ms)


def line(name: str, seen: Cadence, interval_ms: float) -> str:
    """One row."""
    off = np.abs(seen.intervals_ms - interval_ms)
    p50, p99 = np.percentile(off, [50, 99])
    return f"{name:<22} {p50:>8.3f} {p99:>8.3f} {off.max():>8.3f} {seen.drift_ms:>12.1f}"


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--interval-ms", type=int, default=50)
    parser.add_argument("--devices", type=int, default=1)
    options = parser.parse_args()
    config = ExperimentConfig.model_validate(
        {"backend": "simulated", "model": "m", "energy": {"interval_ms": options.interval_ms}}
    )
    with tempfile.TemporaryDirectory() as folder:
        seen, share, done = run_sampler(Path(folder), config, options.devices, options.seconds)
    peer = run_peer(options.interval_ms, options.seconds)
    print(f"{options.devices} device(s) every {options.interval_ms} ms for {options.seconds:g} s\n")
    print(f"{'':<22} {'interval off by, ms':^26} {'off the grid':>12}")
    print(f"{'':<22} {'p50':>8} {'p99':>8} {'max':>8} {'at end, ms':>12}")
    print(line("sampler", seen, options.interval_ms))
    print(line("read-and-sleep loop", peer, options.interval_ms))
    print(
        f"\nsampler: {share:.2%} of a core; {done.summary['late']} late and {done.summary['missed']} missed of "
        f"{done.summary['ticks']} ticks"
    )


if __name__ == "__main__":
    main()
