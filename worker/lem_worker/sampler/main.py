"""The sampler's process (`python -m lem_worker.sampler.main JOB_FILE`): reads power at a fixed cadence until it is
told to stop."""

from __future__ import annotations

import contextlib
import os
import sys
import time
import traceback
from pathlib import Path

from pydantic.types import JsonValue

from lem_domain.evidence.codec import be_ready
from lem_domain.evidence.streams import SAMPLER, PhaseName, StreamName
from lem_worker.process import children as processes
from lem_worker.process.control import ControlPipes, DaemonGone, send_failure
from lem_worker.process.failures import failure_of
from lem_worker.process.power_trend import trend_s
from lem_worker.process.protocol import (
    Done,
    ReuseBaseline,
    SamplerJob,
    SamplingStarted,
    Settle,
    Stop,
    TakeBaseline,
    Tick,
)
from lem_worker.process.spool import EvidenceWriter
from lem_worker.sampler.baseline import Quiet
from lem_worker.sampler.cadence import DeadlineGrid
from lem_worker.sampler.carbon_intensity import intensity_of
from lem_worker.sampler.sampling import Sampling
from lem_worker.sampler.sources import create_source, plan_sources
from lem_worker.sampler.stationarity import PowerHistory

_TICK_NS = 1_000_000_000
_CLOCK_NS = 60_000_000_000
_FLUSH_S = 5.0
"""Rows older than this go to the spool, so that they can be uploaded while the run lasts."""


class SamplerProcess:
    """One attempt's sampling."""

    def __init__(self, job: SamplerJob, control: ControlPipes) -> None:
        self._job = job
        self._control = control
        self._writer = EvidenceWriter(Path(job.spool), SAMPLER)
        self._sampling = Sampling(
            plan_sources(job.config, job.devices),
            lambda name: create_source(name, job.config, time.monotonic_ns),
            self._writer.stream,
            time.monotonic_ns,
            required=job.config.energy.required,
        )
        self._history = PowerHistory(trend_s(job.config.energy.interval_ms))
        self._quiet = Quiet(
            job.config.baseline,
            job.config.settle,
            self._writer.stream(StreamName.PHASES),
            self._sampling,
            self._history,
        )
        self._clock_due_ns = 0

    def run(self) -> int:
        """The answer is the exit code."""
        try:
            summary = self._sample()
            done = Done(streams=self._writer.seal(), summary=summary)
        except DaemonGone:
            raise
        except Exception as error:
            with contextlib.suppress(OSError):  # the log may lie on the disk that is full
                traceback.print_exc()
            # There is no reason of its own for energy: to the run it is something that did not come up.
            failure = failure_of(error, PhaseName.LOAD)
            send_failure(self._control, self._writer, failure.reason, failure.message)
            return 1
        self._control.send(done)
        return 0

    def _sample(self) -> dict[str, JsonValue]:
        be_ready()
        reports = self._sampling.open(self._job.devices)
        self._control.send(SamplingStarted(sources=reports, devices=tuple(self._sampling.facts())))
        cpu_before, began_ns = time.process_time(), time.monotonic_ns()
        interval_ns = self._job.config.energy.interval_ms * 1_000_000
        grid = DeadlineGrid(began_ns, interval_ns)
        self._until_stop(grid)
        self._quiet.end(time.monotonic_ns())
        self._sampling.close()
        self._note_clock(time.monotonic_ns())
        summary: dict[str, JsonValue] = {
            "interval_ns": interval_ns,
            "ticks": grid.ticks,
            "late": grid.late,
            "missed": grid.missed,
            "cpu_s": time.process_time() - cpu_before,
            "duration_s": (time.monotonic_ns() - began_ns) / 1e9,
            "sources": [report.model_dump(mode="json") for report in self._sampling.reports()],
            "devices": [*self._sampling.facts()],
        }
        carbon = self._job.config.carbon
        if carbon is not None and carbon.country is not None:
            summary["carbon_intensity"] = intensity_of(carbon.country)
        self._sampling.event("sampler", summary)
        return summary

    def _until_stop(self, grid: DeadlineGrid) -> None:
        tick_due = time.monotonic_ns()
        while True:
            wait_s = max(0.0, (grid.next_ns - time.monotonic_ns()) / 1e9)
            match self._control.receive(wait_s):
                case Stop():
                    return
                case TakeBaseline() | Settle() as wait:
                    self._quiet.begin(wait, time.monotonic_ns())
                case ReuseBaseline() as kept:
                    self._sampling.event(
                        "baseline_reused",
                        {"context": "idle", "parts": {**kept.parts_w}, "age_s": kept.age_s, "taken_by": kept.taken_by},
                    )
            now = time.monotonic_ns()
            if not grid.tick(now):
                continue
            self._sampling.tick(now)
            if (power_w := self._sampling.power_w()) is not None:
                self._history.add(now, power_w)
            if (answer := self._quiet.look(now)) is not None:
                self._control.send(answer)
            if now >= tick_due:
                tick_due = now + _TICK_NS
                slope = None if power_w is None else self._history.relative_slope(now)
                self._control.send(Tick(phase=PhaseName.MEASURE, power_w=power_w, power_slope=slope))
                self._writer.flush_older_than(_FLUSH_S)
            if now >= self._clock_due_ns:
                self._note_clock(now)

    def _note_clock(self, now_ns: int) -> None:
        """What the wall clock says, so that a jump of it, or a sleep of the machine, can be seen."""
        self._clock_due_ns = now_ns + _CLOCK_NS
        before = time.monotonic_ns()
        utc_ns = time.time_ns()
        after = time.monotonic_ns()
        self._sampling.event(
            "clock", {"monotonic_ns": (before + after) // 2, "utc_ns": utc_ns, "uncertainty_ns": after - before}
        )


def main(arguments: list[str]) -> int:
    """Run the job whose file is named."""
    processes.die_with_parent()
    job = SamplerJob.model_validate_json(Path(arguments[0]).read_bytes())
    return SamplerProcess(job, ControlPipes.from_environment(os.environ)).run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
