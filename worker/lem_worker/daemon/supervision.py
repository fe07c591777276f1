"""Supervision of an attempt's processes: their messages, their ends, and the limits of each step."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

from lem_domain.config.measurement import LimitsConfig
from lem_domain.evidence.streams import SAMPLER, PhaseName
from lem_domain.states import FailureReason
from lem_domain.wire.runs import EffectiveConfig, Progress
from lem_worker.daemon.attempt_end import AttemptEnded, AttemptLost, machine_failure, run_failure
from lem_worker.daemon.process_status import RankStatus, SamplerStatus, progress_of
from lem_worker.daemon.upload import tail
from lem_worker.process.children import SupervisedProcess
from lem_worker.process.protocol import (
    BaselineContext,
    BaselineTaken,
    Done,
    Failed,
    FromProcess,
    PhaseEdge,
    PowerSlope,
    Settle,
    TakeBaseline,
    Tick,
)

logger = logging.getLogger(__name__)

T = TypeVar("T")

SEALING_S = 60.0
"""A driver call may block the sampler without end, and with it the end of the run."""

OPENING_S = 60.0
"""Where energy is optional, the attempt continues without a sampler that has no sample by then. To wake many GPUs whose
driver is not loaded takes tens of seconds; a longer call is one that does not return."""


class Supervision:
    """The processes of one attempt, and the waits for their next step."""

    def __init__(
        self,
        limits: LimitsConfig,
        ranks: tuple[str, ...],
        on_progress: Callable[[Progress], None],
        *,
        log_dir: Path,
    ) -> None:
        self._limits = limits
        self._ranks = {name: RankStatus() for name in ranks}
        self.leader = self._ranks[ranks[0]]
        """Rank 0."""
        self.sampler = SamplerStatus()
        self._on_progress = on_progress
        self._log_dir = log_dir
        self._children: dict[str, SupervisedProcess] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._changed = asyncio.Event()
        self._stopped: asyncio.Future[None] | None = None
        self._stop_reason: AttemptEnded | AttemptLost | None = None
        self._idle_phase: PhaseName | None = None
        self._phase_began = 0.0

    @property
    def effective_configs(self) -> tuple[EffectiveConfig, ...]:
        """The configurations that the loaded ranks read back, that of rank 0 first."""
        found = (rank.effective_config for rank in self._ranks.values())
        return tuple(config for config in found if config is not None)

    # --- the end of the attempt ---------------------------------------------------------------------------------------

    def stop(self, why: AttemptEnded | AttemptLost) -> None:
        """End the attempt; the first reason counts."""
        if self._stop_reason is None:
            self._stop_reason = why
        if self._stopped is not None and not self._stopped.done():
            self._stopped.set_exception(self._stop_reason)

    async def guard(self, work: Coroutine[Any, Any, None]) -> None:
        """Do the work; a call of `stop`, the end of a process or `limits.run_s` cancels it.

        Raises:
            AttemptEnded: it failed, or was stopped.
            AttemptLost: its lease is gone.
        """
        loop = asyncio.get_running_loop()
        self._stopped = loop.create_future()
        if self._stop_reason is not None:
            self._stopped.set_exception(self._stop_reason)
        task = loop.create_task(work)
        try:
            done, _ = await asyncio.wait(
                {task, self._stopped}, timeout=self._limits.run_s, return_when=asyncio.FIRST_COMPLETED
            )
            if not done:
                raise _timeout("the attempt", self._limits.run_s, "run_s")
            if self._stopped in done:
                self._stopped.result()
            await task
        finally:
            if not task.done():
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
            if self._stopped.done():
                self._stopped.exception()  # retrieved, so that asyncio does not log it as lost
            else:
                self._stopped.cancel()  # a later stop has no effect

    def watch(self, task: asyncio.Task[None]) -> None:
        """End the attempt with the error of a background task."""

        def ended(finished: asyncio.Task[None]) -> None:
            if finished.cancelled():
                return
            error = finished.exception()
            if error is not None and self._stopped is not None and not self._stopped.done():
                self._stopped.set_exception(error)

        task.add_done_callback(ended)

    async def until_gone(self, grace_s: float) -> None:
        """Wait up to `grace_s` seconds until all processes have ended; an engine may hang while it is unloaded."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                await asyncio.gather(*(child.wait() for child in self._children.values()))

    async def kill_all(self, grace_s: float) -> None:
        """End every process, and every task that follows one."""
        await asyncio.gather(*(child.kill(grace_s) for child in self._children.values()))
        self._children.clear()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()

    # --- the steps of the attempt, in their order ---------------------------------------------------------------------

    async def while_loading(self, work: Coroutine[Any, Any, T], what: str) -> T:
        """Do the work that precedes the first message of the ranks, within `limits.load_s`."""
        try:
            async with asyncio.timeout(self._limits.load_s) as limit:
                return await work
        except TimeoutError:
            if limit.expired():
                raise _timeout(what, self._limits.load_s, "load_s") from None
            raise

    async def until_sampling(self, sampler: SupervisedProcess, *, required: bool, grace_s: float) -> None:
        """Wait for the sampler's first samples; without `required`, continue without a sampler that has none.

        Raises:
            AttemptEnded: it died or hangs, and energy is required.
        """
        limit_s = self._limits.load_s if required else min(OPENING_S, self._limits.load_s)
        try:
            await self._until(lambda: self.sampler.sampling or self.sampler.gone, limit_s, "opening the energy sources")
        except AttemptEnded:
            if required:
                raise
            self._continue_without_sampler(
                f"the sampler opened no energy source in {limit_s:g} s and was killed; see whether nvidia-smi answers"
            )
            # Awaited at the end of the attempt only: a driver call may keep a killed process for any time.
            self._tasks.append(asyncio.create_task(sampler.kill(grace_s), name="lem-kill-sampler"))
            return
        if self.sampler.sampling:
            return
        ended = await sampler.wait()
        if not required:
            self._continue_without_sampler(f"the sampler {ended} before its first sample; its log says more")
            return
        raise machine_failure(
            FailureReason.BACKEND_INITIALISATION,
            f"the sampler {ended} before its first sample:\n{tail(self._log_dir / f'{SAMPLER}.log')}",
        )

    async def until_loaded(self) -> EffectiveConfig:
        """Wait until every rank's engine is loaded; returns the configuration that rank 0 read back."""
        await self._until(lambda: len(self.effective_configs) == len(self._ranks), self._limits.load_s, "load_s")
        return self.effective_configs[0]

    async def until_ready(self) -> None:
        """Wait until every rank has completed its warm-up."""
        await self._until_ranks(lambda rank: rank.ready, self._limits.warmup_s, "warmup_s")

    async def baseline(
        self, sampler: SupervisedProcess, context: BaselineContext, *, limit_s: float
    ) -> BaselineTaken | None:
        """Let the sampler measure a baseline while no requests run; None when the sampler can't."""
        sampler.send(TakeBaseline(context=context))
        await self._until_sampler(lambda: context in self.sampler.baselines, PhaseName.BASELINE, limit_s)
        return self.sampler.baselines.get(context)

    async def settle(self, sampler: SupervisedProcess, *, limit_s: float) -> None:
        """Wait until the devices have settled; the sampler's evidence records whether they did."""
        sampler.send(Settle())
        await self._until_sampler(lambda: self.sampler.settled is not None, PhaseName.SETTLE, limit_s)

    async def until_measured(self) -> None:
        """Wait until every rank has the last token of its last request."""
        await self._until_ranks(lambda rank: rank.measured or rank.done is not None, self._limits.run_s, "run_s")

    async def until_done(self) -> dict[str, Done]:
        """Wait until every rank has sealed its evidence."""
        await self._until_ranks(lambda rank: rank.done is not None, self._limits.run_s, "run_s")
        return {name: rank.done for name, rank in self._ranks.items() if rank.done is not None}

    async def until_sampler_done(self) -> Done | None:
        """Wait until the sampler has sealed its evidence; None when it died or takes longer than `SEALING_S`."""
        with contextlib.suppress(AttemptEnded):
            await self._until(
                lambda: self.sampler.done is not None or self.sampler.gone, SEALING_S, "sealing the power samples"
            )
        return self.sampler.done

    async def _until_sampler(self, met: Callable[[], bool], phase: PhaseName, limit_s: float) -> None:
        """Wait for an answer of the sampler; one that died or hangs costs its answer, not the attempt."""
        self._idle_phase, self._phase_began = phase, _now()
        self._report()
        try:
            with contextlib.suppress(AttemptEnded):
                await self._until(lambda: met() or self.sampler.gone, limit_s + SEALING_S, phase.value)
        finally:
            self._idle_phase = None

    async def _until_ranks(self, met: Callable[[RankStatus], bool], limit_s: float, name: str) -> None:
        """Wait until all ranks meet the condition, and end the attempt when one is silent meanwhile."""
        # A rank that waited for a message until now had nothing to report.
        for rank in self._ranks.values():
            rank.heard_at = _now()
        await self._until(lambda: all(met(rank) for rank in self._ranks.values()), limit_s, name, silence=True)

    async def _until(self, met: Callable[[], bool], limit_s: float, name: str, *, silence: bool = False) -> None:
        deadline = _now() + limit_s
        while not met():
            wake = min(deadline, self._silent_at()) if silence else deadline
            self._changed.clear()
            try:
                # Not wait_for: before Python 3.12 it swallows a cancellation that arrives together with the event
                # (https://github.com/python/cpython/issues/86296).
                async with asyncio.timeout(max(0.0, wake - _now())):
                    await self._changed.wait()
            except TimeoutError:
                if met():
                    return
                if _now() >= deadline:
                    raise _timeout("the step", limit_s, name) from None
                if silence and _now() >= self._silent_at():
                    raise run_failure(
                        FailureReason.SILENT,
                        f"no rank made progress for {self._limits.silence_s:g} s (limits.silence_s); "
                        f"the last lines:\n{self._tails()}",
                    ) from None

    def _silent_at(self) -> float:
        """The time at which a busy rank will have been silent for `limits.silence_s`."""
        ranks = self._ranks.values()
        all_ready = all(rank.ready for rank in ranks)
        # A rank that is ready waits for the others until all are.
        busy = [rank for rank in ranks if rank.done is None and (all_ready or not rank.ready)]
        return min((rank.heard_at for rank in busy), default=_now()) + self._limits.silence_s

    # --- the messages of the processes --------------------------------------------------------------------------------

    def follow(self, child: SupervisedProcess) -> None:
        """Read the messages of a process until it closes its pipe."""
        self._children[child.name] = child
        self._tasks.append(asyncio.create_task(self._read(child), name=f"lem-read-{child.name}"))

    async def _read(self, child: SupervisedProcess) -> None:
        try:
            while (message := await child.receive()) is not None:
                if child.name == SAMPLER:
                    self._take_of_sampler(message)
                else:
                    self._take_of_rank(child.name, message)
                self._changed.set()
        except ValueError as error:  # not a message, or longer than LONGEST_LINE
            self.stop(
                machine_failure(FailureReason.BACKEND_INITIALISATION, f"{child.name} sent an invalid message: {error}")
            )
            return
        if child.name != SAMPLER:
            await self._rank_ended(child)
        elif self.sampler.done is None:
            self.sampler.end()
            self._send_power_slope()
            self._report()
            self._changed.set()

    async def _rank_ended(self, child: SupervisedProcess) -> None:
        rank = self._ranks[child.name]
        if rank.done is not None:
            return
        ended = await child.wait()
        during = f" during {rank.phase.value}" if rank.phase else ""
        last = tail(self._log_dir / f"{child.name}.log")
        message = f"{child.name} {ended}{during}" + (f"; its last lines:\n{last}" if last else ", and wrote nothing")
        # An engine that rejects a model raises an error; one that takes its process down suffers from the machine.
        if rank.is_loading:
            self.stop(machine_failure(FailureReason.BACKEND_INITIALISATION, message))
        else:
            self.stop(run_failure(FailureReason.INFERENCE, message))

    def _take_of_sampler(self, message: FromProcess) -> None:
        if self.sampler.failure is not None:
            return  # it is being killed
        self.sampler.take(message)
        if isinstance(message, Failed):
            self.stop(machine_failure(message.reason, message.message))
        elif isinstance(message, Tick):
            self._send_power_slope()
            self._report()

    def _take_of_rank(self, name: str, message: FromProcess) -> None:
        rank = self._ranks[name]
        rank.heard_at = _now()
        rank.take(message)
        match message:
            case Failed(reason=FailureReason.BACKEND_UNAVAILABLE):
                self.stop(machine_failure(message.reason, message.message))
            case Failed():
                self.stop(run_failure(message.reason, message.message))
            case PhaseEdge(edge="begin") if rank is self.leader:
                self._phase_began = _now()
                for one in self._ranks.values():
                    one.tick = None
                self._report()
            case Tick():
                self._report()

    def _continue_without_sampler(self, why: str) -> None:
        self.sampler.end()
        self.sampler.failure = why
        logger.warning("%s:\n%s", why, tail(self._log_dir / f"{SAMPLER}.log"))

    def _send_power_slope(self) -> None:
        for name, rank in self._ranks.items():
            if rank.phase is PhaseName.WARMUP:
                self._children[name].send(PowerSlope(slope=self.sampler.power_slope))

    def _report(self) -> None:
        self._on_progress(
            progress_of(
                [*self._ranks.values()],
                phase=self._idle_phase or self.leader.phase,
                elapsed_s=_now() - self._phase_began,
                power_w=self.sampler.power_w,
            )
        )

    def _tails(self) -> str:
        return "\n".join(tail(self._log_dir / f"{rank}.log", lines=5, most=500) for rank in self._ranks)


def _timeout(what: str, limit_s: float, name: str) -> AttemptEnded:
    return run_failure(
        FailureReason.TIMEOUT,
        f"{what} took longer than {limit_s:g} s ({name}); raise the limit or make the run smaller.",
    )


def _now() -> float:
    return asyncio.get_running_loop().time()
