"""The sampler's process (`python -m lem_worker.sampler.main JOB_FILE`): samples until the daemon sends `Stop`."""

from __future__ import annotations

import contextlib
import os
import sys
import time
import traceback
from pathlib import Path

from pydantic.types import JsonValue

from lem_domain.evidence.codec import preload
from lem_domain.evidence.streams import SAMPLER, PhaseName, StreamName
from lem_domain.wire.workers import DeviceKind
from lem_worker.process import children
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
from lem_worker.sampler.baseline import IdlePhases
from lem_worker.sampler.cadence import DeadlineGrid
from lem_worker.sampler.carbon_intensity import intensity_of
from lem_worker.sampler.cpu_load import cpu_load
from lem_worker.sampler.sampling import EnergySampler
from lem_worker.sampler.sources import plan_sources
from lem_worker.sampler.stationarity import PowerHistory

_PROGRESS_NS = 1_000_000_000
_CLOCK_NS = 60_000_000_000
_CPU_LOAD_NS = 2_000_000_000
"""Counters, so nothing is missed in between; reading those of all processes takes some 10 ms."""
_FLUSH_S = 5.0
"""Older rows are sealed into a chunk of the spool, so that the daemon can upload them during the run."""


class SamplerProcess:
    """One attempt's sampling."""

    def __init__(self, job: SamplerJob, control: ControlPipes) -> None:
        self._job = job
        self._control = control
        self._writer = EvidenceWriter(Path(job.spool), SAMPLER)
        self._sampler = EnergySampler(
            plan_sources(job.config, job.devices), job.config, self._writer.stream, time.monotonic_ns
        )
        self._history = PowerHistory(trend_s(job.config.energy.interval_ms))
        self._idle_phases = IdlePhases(
            job.config.baseline,
            job.config.settle,
            self._writer.stream(StreamName.PHASES),
            self._sampler,
            self._history,
        )
        self._clock_due_ns = 0
        self._cpu_load_due_ns = 0
        self._measures_cpu = any(device.kind is DeviceKind.CPU for device in job.devices)

    def run(self) -> int:
        """Sample until `Stop`; return the exit code."""
        try:
            summary = self._sample()
            done = Done(streams=self._writer.seal(), summary=summary)
        except DaemonGone:
            raise
        except Exception as error:
            with contextlib.suppress(OSError):  # the log may be on the disk that is full
                traceback.print_exc()
            # No failure reason is specific to energy. LOAD fits best: to the run, energy is a part that did not start.
            failure = failure_of(error, PhaseName.LOAD)
            send_failure(self._control, self._writer, failure.reason, failure.message)
            return 1
        self._control.send(done)
        return 0

    def _sample(self) -> dict[str, JsonValue]:
        preload()
        reports = self._sampler.open(self._job.devices)
        self._control.send(SamplingStarted(sources=reports, devices=tuple(self._device_facts())))
        cpu_before, began_ns = time.process_time(), time.monotonic_ns()
        interval_ns = self._job.config.energy.interval_ms * 1_000_000
        grid = DeadlineGrid(began_ns, interval_ns)
        self._sample_until_stop(grid)
        self._idle_phases.close(time.monotonic_ns())
        self._sampler.close()
        self._note_clock(time.monotonic_ns())
        if self._measures_cpu:
            self._note_cpu_load(time.monotonic_ns())
        summary: dict[str, JsonValue] = {
            "interval_ns": interval_ns,
            "ticks": grid.ticks,
            "late": grid.late,
            "missed": grid.missed,
            "cpu_s": time.process_time() - cpu_before,
            "duration_s": (time.monotonic_ns() - began_ns) / 1e9,
            "sources": [report.model_dump(mode="json") for report in self._sampler.reports()],
            "devices": [*self._device_facts()],
            "rounds": [*self._sampler.rounds()],
            "failed_readings": [*self._sampler.failures()],
        }
        carbon = self._job.config.carbon
        if carbon is not None and carbon.country is not None:
            summary["carbon_intensity"] = intensity_of(carbon.country)
        self._sampler.event("sampler", summary)
        return summary

    def _device_facts(self) -> list[dict[str, JsonValue]]:
        """The facts of the sources, with what the worker found at its start."""
        idle = {one.uuid: one.model_dump(mode="json", exclude={"uuid"}) for one in self._job.idle_power}
        return [
            {**facts, "idle_power": idle[uuid]} if (uuid := facts.get("uuid")) in idle else facts
            for facts in self._sampler.facts()
        ]

    def _sample_until_stop(self, grid: DeadlineGrid) -> None:
        progress_due_ns = time.monotonic_ns()
        while True:
            # One thread does everything: the wait for the next deadline is the wait for a message.
            wait_s = max(0.0, (grid.next_ns - time.monotonic_ns()) / 1e9)
            match self._control.receive(wait_s):
                case Stop():
                    return
                case TakeBaseline() | Settle() as request:
                    self._idle_phases.begin(request, time.monotonic_ns())
                case ReuseBaseline() as kept:
                    self._sampler.event(
                        "baseline_reused",
                        {"context": "idle", "parts": {**kept.parts_w}, "age_s": kept.age_s, "taken_by": kept.taken_by},
                    )
            now = time.monotonic_ns()
            if not grid.tick(now):
                continue
            self._sampler.tick(now)
            if (power_w := self._sampler.power_w()) is not None:
                self._history.add(now, power_w)
            if (answer := self._idle_phases.check(now)) is not None:
                self._control.send(answer)
            if now >= progress_due_ns:
                progress_due_ns = now + _PROGRESS_NS
                slope = None if power_w is None else self._history.relative_slope(now)
                self._control.send(Tick(phase=PhaseName.MEASURE, power_w=power_w, power_slope=slope))
                self._writer.flush_older_than(_FLUSH_S)
            if now >= self._clock_due_ns:
                self._note_clock(now)
            if self._measures_cpu and now >= self._cpu_load_due_ns:
                self._note_cpu_load(now)

    def _note_clock(self, now_ns: int) -> None:
        """Record UTC next to monotonic time, so that a step of the wall clock or a suspend can be detected."""
        self._clock_due_ns = now_ns + _CLOCK_NS
        before = time.monotonic_ns()
        utc_ns = time.time_ns()
        after = time.monotonic_ns()
        self._sampler.event(
            "clock", {"monotonic_ns": (before + after) // 2, "utc_ns": utc_ns, "uncertainty_ns": after - before}
        )

    def _note_cpu_load(self, now_ns: int) -> None:
        """Record the processor time of the host and of the worker, whose difference is that of other processes."""
        self._cpu_load_due_ns = now_ns + _CPU_LOAD_NS
        if (load := cpu_load(os.getppid())) is not None:
            self._sampler.event("cpu_load", {**load._asdict()})


def main(arguments: list[str]) -> int:
    """Run the job of the named file."""
    children.die_with_parent()
    job = SamplerJob.model_validate_json(Path(arguments[0]).read_bytes())
    return SamplerProcess(job, ControlPipes.from_environment(os.environ)).run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
