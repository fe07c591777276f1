"""The rank process (`python -m lem_worker.rank.main JOB_FILE`) runs one job: load, warm up, measure, seal, unload."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from pydantic.types import JsonValue

from lem_domain.evidence.codec import preload
from lem_domain.evidence.streams import PhaseName, StreamName, rank_name
from lem_domain.wire.runs import EffectiveConfig
from lem_worker.backends.create import create_backend
from lem_worker.backends.protocol import CompilingBackend, ContinuousBackend, InferenceBackend
from lem_worker.process import children
from lem_worker.process.control import ControlPipes, DaemonGone, send_failure
from lem_worker.process.failures import failure_of
from lem_worker.process.power_trend import trend_s
from lem_worker.process.protocol import (
    CONTROL_SOCKET,
    ControlMessage,
    Done,
    Finish,
    Go,
    Joined,
    Loaded,
    Measured,
    PowerSlope,
    RankJob,
    Ready,
    WarmUp,
)
from lem_worker.process.spool import EvidenceWriter
from lem_worker.rank.after_window import probe_prefill, score_quality
from lem_worker.rank.measured_window import RankIndex, Ticker, batches_of_other_sizes, measure, most_waiting, send_once
from lem_worker.rank.peak_memory import PeakMemory
from lem_worker.rank.phases import Phases
from lem_worker.rank.prompt_share import prepare_share
from lem_worker.rank.prompts import (
    PreparedPrompt,
    Request,
    batch_with_most_rows,
    batch_with_most_tokens,
    batches_of,
    warmup_requests,
    with_few_tokens,
)
from lem_worker.rank.recorder import Recorder, Sinks
from lem_worker.rank.token_digests import OutputLedger, digest_of_set, digest_of_tokens
from lem_worker.rank.warmup import PowerTrend, WarmupAssessment, warm_up
from lem_worker.rank.window_length import WindowLength

M = TypeVar("M", bound=ControlMessage)

_FLUSH_S = 5.0
"""Rows older than this go to the spool, so that the daemon can upload them while the window is open."""


class Rank:
    """Runs one job: load, warm up, measure, seal, unload."""

    def __init__(self, job: RankJob, control: ControlPipes) -> None:
        self._job = job
        self._config = job.config
        self._control = control
        self._clock = time.monotonic_ns
        self._writer = EvidenceWriter(Path(job.spool), rank_name(job.rank))
        self._events = self._writer.stream(StreamName.EVENTS)
        self._phases = Phases(self._writer.stream(StreamName.PHASES), control.send, self._clock)

    def run(self) -> int:
        """Run the job and return the exit code."""
        try:
            backend, summary = self._load_and_measure()
            done = Done(streams=self._writer.seal(), summary=summary)
        except DaemonGone:
            raise
        except Exception as error:
            with contextlib.suppress(OSError):  # the log may be on the disk that is full
                traceback.print_exc()
            failure = failure_of(error, self._phases.current)
            send_failure(self._control, self._writer, failure.reason, failure.message)
            return 1
        self._control.send(done)
        # Last, because an engine that fails to unload must not cost a run that is measured.
        backend.unload()
        return 0

    def _load_and_measure(self) -> tuple[InferenceBackend, dict[str, JsonValue]]:
        backend, prompts, batches, effective = self._load()
        self._control.send(Loaded(effective_config=effective))
        order = self._wait_for(WarmUp)
        warmup = self._warm_up(backend, batches, power_known=order.power_known)
        # Objects from loading are frozen, so that no collection inside the window scans them.
        gc.collect()
        gc.freeze()
        self._control.send(Ready())
        self._wait_for(Go)
        summary = self._measure(backend, prompts)
        if self._config.prefill_probe:
            summary["prefill_probe"] = self._probe(backend, prompts)
        self._control.send(Measured())
        self._wait_for(Finish)
        if self._config.quality and self._job.rank == 0:
            with self._phases.phase(PhaseName.QUALITY):
                summary["quality"] = score_quality(backend)
        return backend, {
            **summary,
            "engine": effective.engine,
            "warmup_converged": warmup.converged if warmup else None,
            "warmup_requests": warmup.batches if warmup else 0,
        }

    def _load(self) -> tuple[InferenceBackend, Sequence[PreparedPrompt], list[Sequence[Request]], EffectiveConfig]:
        """Return the loaded backend, the prompts, batches for warm-up, and the effective configuration.

        A compiling backend compiles in a separate phase and is read back afterwards.
        """
        with self._phases.phase(PhaseName.LOAD):
            backend = create_backend(self._config.backend)
            backend.load(self._job)
            prompts = prepare_share(backend, self._job)
            requests = warmup_requests(prompts, seed=self._config.decoding.seed)
            batches = list(
                batches_of(requests, backend.in_flight())
                if isinstance(backend, ContinuousBackend)
                else backend.batches(requests)
            )
            if not (isinstance(backend, CompilingBackend) and backend.compiles()):
                return backend, prompts, batches, backend.effective_config(batch_with_most_rows(batches))
        with self._phases.phase(PhaseName.COMPILE):
            backend.compile(requests, self._most_waiting)
            return backend, prompts, batches, backend.effective_config(batch_with_most_rows(batches))

    @property
    def _most_waiting(self) -> int | None:
        return most_waiting(self._config.traffic, self._job.world_size)

    def _warm_up(
        self, backend: InferenceBackend, batches: Sequence[Sequence[Request]], *, power_known: bool
    ) -> WarmupAssessment | None:
        """Send a short batch of every other number of rows, then the one with most tokens until it is steady."""
        if not self._config.warmup.enabled:
            return None
        with self._phases.phase(PhaseName.WARMUP):
            recorder = Recorder(
                PhaseName.WARMUP,
                progress=Ticker(PhaseName.WARMUP, self._control.send, self._clock()),
                clock=self._clock,
            )

            requests = batch_with_most_tokens(batches)
            for batch in batches_of_other_sizes(backend, batches, requests, self._most_waiting):
                send_once(backend, with_few_tokens(batch, self._config.output.max_tokens), recorder)

            def send() -> float:
                return float(send_once(backend, requests, recorder))

            slope: float | None = None

            def power() -> PowerTrend:
                nonlocal slope
                while (message := self._control.receive(0)) is not None:
                    if isinstance(message, PowerSlope):
                        slope = message.slope
                return PowerTrend(power_known, slope, trend_s(self._config.energy.interval_ms))

            assessment = warm_up(send, self._config.warmup, power)
        self._event(
            "warmup",
            {
                "converged": assessment.converged,
                "requests": assessment.batches,
                "cv": assessment.cv,
                "power_slope": assessment.power_slope,
            },
        )
        return assessment

    def _wait_for(self, kind: type[M]) -> M:
        while not isinstance(message := self._control.receive(), kind):
            pass
        return message

    def _measure(self, backend: InferenceBackend, prompts: Sequence[PreparedPrompt]) -> dict[str, JsonValue]:
        config = self._config
        length = WindowLength.of(config.window, world_size=self._job.world_size, min_requests=len(self._job.arrivals_s))
        ledger = OutputLedger(keep_ids=config.record.outputs)
        tokens = self._writer.stream(StreamName.TOKENS) if config.record.tokens else None
        sinks = Sinks(self._writer.stream(StreamName.REQUESTS), tokens, ledger)
        memory = PeakMemory()
        with self._phases.phase(PhaseName.MEASURE):
            ticker = Ticker(
                PhaseName.MEASURE,
                self._control.send,
                self._clock(),
                lambda duration_ns, requests: length.fraction(duration_ns, requests, share=len(prompts)),
            )
            recorder = Recorder(PhaseName.MEASURE, sinks, ticker, self._clock)
            try:
                repetitions = measure(
                    backend,
                    prompts,
                    recorder,
                    length=length,
                    seed=config.decoding.seed,
                    flush_evidence=lambda: self._writer.flush_older_than(_FLUSH_S),
                    traffic=config.traffic,
                    drained=config.window.repeat == "drained",
                    rank=RankIndex(self._job.rank, self._job.world_size),
                    arrivals_s=self._job.arrivals_s,
                )
            except Exception as error:
                recorder.abandon(failure_of(error, PhaseName.MEASURE).message)
                raise
        # First, because the peaks of the window must not include later work.
        facts, rss = backend.facts(), memory.read()
        unknown = {**_reasons(facts), **({} if memory.reason is None else {"peak_rss_bytes": memory.reason})}
        for index, token_ids in ledger.kept():
            self._event("output", {"prompt_index": index, "text": backend.text(token_ids)})
        return {
            **facts,
            "peak_rss_bytes": rss,
            "unknown": unknown,
            "prompts": len(prompts),
            "repetitions": repetitions,
            "requests": recorder.requests_done,
            "failed_requests": recorder.requests_failed,
            "window_cut": length.cut(recorder.requests_ended, share=len(prompts)),
            "prompt_tokens": recorder.prompt_tokens,
            "generated_tokens": recorder.generated_tokens,
            "prompts_sha256": digest_of_set((prompt.index, digest_of_tokens(prompt.token_ids)) for prompt in prompts),
            "outputs_sha256": ledger.digest(),
            "outputs_repeat": ledger.repeats,
        }

    def _probe(self, backend: InferenceBackend, prompts: Sequence[PreparedPrompt]) -> dict[str, JsonValue]:
        with self._phases.phase(PhaseName.PREFILL_PROBE):
            return probe_prefill(
                backend,
                prompts,
                self._config,
                rank=RankIndex(self._job.rank, self._job.world_size),
                progress=Ticker(PhaseName.PREFILL_PROBE, self._control.send, self._clock()),
                clock=self._clock,
            )

    def _event(self, kind: str, detail: dict[str, JsonValue]) -> None:
        self._events.append(time_ns=self._clock(), kind=kind, detail=json.dumps(detail))


def _reasons(facts: dict[str, JsonValue]) -> dict[str, JsonValue]:
    """The reasons of a backend for the facts that it does not know, by name."""
    reasons = facts.get("unknown")
    return reasons if isinstance(reasons, dict) else {}


def main(arguments: list[str]) -> int:
    """Run the job in the file `arguments[0]`."""
    children.die_with_parent()
    preload()
    job_file = Path(arguments[0])
    if CONTROL_SOCKET in os.environ:
        return _launched(job_file)
    job = RankJob.model_validate_json(job_file.read_bytes())
    return Rank(job, ControlPipes.from_environment(os.environ)).run()


def _launched(first_job_file: Path) -> int:
    """Run as a rank that accelerate started; the environment holds its number, or none for a single rank."""
    number, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    name = rank_name(number)
    with first_job_file.with_name(f"{name}.log").open("ab") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    control = ControlPipes.connect(
        os.environ[CONTROL_SOCKET], Joined(rank=number, world_size=world_size, pid=os.getpid())
    )
    job = RankJob.model_validate_json(first_job_file.with_name(f"{name}.job.json").read_bytes())
    return Rank(job, control).run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
