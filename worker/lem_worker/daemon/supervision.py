"""Follows the processes of one attempt: what they say, whether they live, and whether they keep their limits."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

from pydantic.types import JsonValue

from lem_domain.config.experiment import LimitsConfig
from lem_domain.evidence.streams import SAMPLER, PhaseName
from lem_domain.states import FailureReason
from lem_domain.wire.runs import EffectiveConfig, Progress
from lem_worker.daemon.ending import AttemptEnded, AttemptLost, broken, failed
from lem_worker.daemon.sampler_state import SamplerState
from lem_worker.daemon.upload import tail
from lem_worker.process.children import SupervisedProcess
from lem_worker.process.protocol import (
    BaselineContext,
    BaselineTaken,
    Done,
    Failed,
    FromProcess,
    Loaded,
    Measured,
    PhaseEdge,
    PowerSlope,
    Ready,
    Settle,
    TakeBaseline,
    Tick,
)

logger = logging.getLogger(__name__)

T = TypeVar("T")

SEALING_S = 60.0
"""A driver may hold the sampler for ever."""

OPENING_S = 60.0
"""A sampler that has no sample by then is done without, where energy is not required. Waking many GPUs whose driver
nothing keeps loaded takes tens of seconds; what takes longer is a call of the driver that does not return."""

_NOT_LOADED = frozenset({None, PhaseName.LOAD, PhaseName.COMPILE})


class Supervision:
    """The state of an attempt's processes, and waits for what must come next."""

    def __init__(
        self,
        limits: LimitsConfig,
        ranks: tuple[str, ...],
        on_progress: Callable[[Progress], None],
        *,
        log_dir: Path,
    ) -> None:
        self._limits = limits
        self._ranks = ranks
        self._on_progress = on_progress
        self._log_dir = log_dir
        self._children: dict[str, SupervisedProcess] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._changed = asyncio.Event()
        self._stopped: asyncio.Future[None] | None = None
        self._stop_reason: AttemptEnded | AttemptLost | None = None
        self._loaded: dict[str, EffectiveConfig] = {}
        self._ready: set[str] = set()
        self._done: dict[str, Done] = {}
        self._measured: set[str] = set()
        self._sampler = SamplerState()
        self._quiet: PhaseName | None = None
        self._phase: dict[str, PhaseName | None] = {}
        self._ticks: dict[str, Tick] = {}
        self._last_sign: dict[str, float] = {}
        self._phase_began = 0.0

    @property
    def effective_config(self) -> EffectiveConfig | None:
        """What rank 0 read back from its engine, when it has."""
        return self._loaded.get(self._ranks[0])

    @property
    def effective_configs(self) -> tuple[EffectiveConfig, ...]:
        """What each rank that is loaded read back."""
        return tuple(self._loaded[rank] for rank in self._ranks if rank in self._loaded)

    @property
    def device_facts(self) -> tuple[dict[str, JsonValue], ...]:
        """What the sampler says of the leased devices, when it has."""
        return self._sampler.device_facts

    def stop(self, why: AttemptEnded | AttemptLost) -> None:
        """End the attempt from outside; the first reason counts."""
        if self._stop_reason is None:
            self._stop_reason = why
        if self._stopped is not None and not self._stopped.done():
            self._stopped.set_exception(self._stop_reason)

    async def guard(self, work: Coroutine[Any, Any, None]) -> None:
        """Do the work until it ends, somebody stops the attempt, a process fails, or its time is up.

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
                self._stopped.exception()
            else:
                self._stopped.cancel()  # whoever is stopped from now on is not waited for

    def watch(self, task: asyncio.Task[None]) -> None:
        """End the attempt with the error of a task that runs beside it."""

        def ended(finished: asyncio.Task[None]) -> None:
            if finished.cancelled():
                return
            error = finished.exception()
            if error is not None and self._stopped is not None and not self._stopped.done():
                self._stopped.set_exception(error)

        task.add_done_callback(ended)

    def follow(self, child: SupervisedProcess) -> None:
        """Read what a process says until it closes its pipe."""
        self._children[child.name] = child
        self._last_sign[child.name] = _now()
        self._tasks.append(asyncio.create_task(self._read(child), name=f"lem-read-{child.name}"))

    async def until_prepared(self, work: Coroutine[Any, Any, T]) -> T:
        """Do what comes before any process starts."""
        return await self._while_loading(work, "finding the model and the prompts")

    async def until_launched(self, work: Coroutine[Any, Any, T]) -> T:
        """Start ranks that come by themselves."""
        return await self._while_loading(work, "starting the ranks")

    async def _while_loading(self, work: Coroutine[Any, Any, T], what: str) -> T:
        try:
            async with asyncio.timeout(self._limits.load_s) as limit:
                return await work
        except TimeoutError:
            if limit.expired():
                raise _timeout(what, self._limits.load_s, "load_s") from None
            raise

    async def until_sampling(self, sampler: SupervisedProcess, *, required: bool, grace_s: float) -> None:
        """Wait for the sampler's first samples; where energy is not required, go on without one that has none.

        Raises:
            AttemptEnded: it died or hangs, and energy is required.
        """
        limit_s = self._limits.load_s if required else min(OPENING_S, self._limits.load_s)
        try:
            await self._until(
                lambda: self._sampler.sampling or self._sampler.gone, limit_s, "opening the energy sources"
            )
        except AttemptEnded:
            if required:
                raise
            self._do_without_sampler(
                f"the sampler opened no energy source in {limit_s:g} s and was killed; see whether nvidia-smi answers"
            )
            # Not waited for before the attempt's end: a driver may hold it for as long as it likes.
            self._tasks.append(asyncio.create_task(sampler.kill(grace_s), name="lem-kill-sampler"))
            return
        if self._sampler.sampling:
            return
        ended = await sampler.wait()
        if not required:
            self._do_without_sampler(f"the sampler {ended} before its first sample; its log says more")
            return
        raise broken(
            FailureReason.BACKEND_INITIALISATION,
            f"the sampler {ended} before its first sample:\n{tail(self._log_dir / f'{SAMPLER}.log')}",
        )

    def _do_without_sampler(self, why: str) -> None:
        self._sampler.end()
        self._sampler.failure = why
        logger.warning("%s:\n%s", why, tail(self._log_dir / f"{SAMPLER}.log"))

    @property
    def sampler_failure(self) -> str | None:
        """Why the sampler has no samples at all, where the attempt goes on without it."""
        return self._sampler.failure

    async def until_loaded(self) -> EffectiveConfig:
        """Wait until every rank's engine is up; what rank 0 read back."""
        await self._until(lambda: len(self._loaded) == len(self._ranks), self._limits.load_s, "load_s")
        return self._loaded[self._ranks[0]]

    async def until_ready(self) -> None:
        """Wait until every rank is warm."""
        self._last_sign = dict.fromkeys(self._last_sign, _now())
        await self._until(lambda: len(self._ready) == len(self._ranks), self._limits.warmup_s, "warmup_s", silence=True)

    @property
    def power_known(self) -> bool:
        """Some source tells power."""
        return self._sampler.power_w is not None

    async def baseline(
        self, sampler: SupervisedProcess, context: BaselineContext, *, limit_s: float
    ) -> BaselineTaken | None:
        """Let the sampler take the power of the devices while nothing works; None when it can't."""
        sampler.send(TakeBaseline(context=context))
        await self._until_quiet(lambda: context in self._sampler.baselines, PhaseName.BASELINE, limit_s)
        return self._sampler.baselines.get(context)

    async def settle(self, sampler: SupervisedProcess, *, limit_s: float) -> None:
        """Let the devices cool down; whether they did stands in the sampler's evidence."""
        sampler.send(Settle())
        await self._until_quiet(lambda: self._sampler.settled is not None, PhaseName.SETTLE, limit_s)

    async def until_measured(self) -> None:
        """Wait until every rank has sent its last request and got its last token."""
        self._last_sign = dict.fromkeys(self._last_sign, _now())
        await self._until(
            lambda: all(rank in self._measured or rank in self._done for rank in self._ranks),
            self._limits.run_s,
            "run_s",
            silence=True,
        )

    async def until_done(self) -> dict[str, Done]:
        """Wait until every rank has sealed its evidence."""
        self._last_sign = dict.fromkeys(self._last_sign, _now())
        await self._until(
            lambda: all(rank in self._done for rank in self._ranks), self._limits.run_s, "run_s", silence=True
        )
        return {rank: self._done[rank] for rank in self._ranks}

    async def until_sampler_done(self) -> Done | None:
        """Wait until the sampler has sealed its evidence; None when it died, or goes on for too long."""
        with contextlib.suppress(AttemptEnded):
            await self._until(
                lambda: SAMPLER in self._done or self._sampler.gone, SEALING_S, "sealing the power samples"
            )
        return self._done.get(SAMPLER)

    async def until_gone(self, grace_s: float) -> None:
        """Wait for the processes to end by themselves, at most so long: an engine may hang while it is unloaded."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                await asyncio.gather(*(child.wait() for child in self._children.values()))

    async def kill_all(self, grace_s: float) -> None:
        """End every process and every task that has to do with one."""
        await asyncio.gather(*(child.kill(grace_s) for child in self._children.values()))
        self._children.clear()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()

    async def _until_quiet(self, met: Callable[[], bool], phase: PhaseName, limit_s: float) -> None:
        """A sampler that is gone or hangs is not waited for: what it should have seen is missing then."""
        self._quiet, self._phase_began = phase, _now()
        self._report()
        try:
            with contextlib.suppress(AttemptEnded):
                await self._until(lambda: met() or self._sampler.gone, limit_s + SEALING_S, phase.value)
        finally:
            self._quiet = None

    async def _until(self, met: Callable[[], bool], limit_s: float, name: str, *, silence: bool = False) -> None:
        deadline = _now() + limit_s
        while not met():
            wake = min(deadline, self._silent_at()) if silence else deadline
            self._changed.clear()
            try:
                # Not wait_for: before Python 3.12 it swallows a cancel that comes together with the event.
                async with asyncio.timeout(max(0.0, wake - _now())):
                    await self._changed.wait()
            except TimeoutError:
                if met():
                    return
                if _now() >= deadline:
                    raise _timeout("the step", limit_s, name) from None
                if silence and _now() >= self._silent_at():
                    raise failed(
                        FailureReason.SILENT,
                        f"no rank made progress for {self._limits.silence_s:g} s (limits.silence_s); "
                        f"the last lines:\n{self._tails()}",
                    ) from None

    def _silent_at(self) -> float:
        """When the first rank that should be busy has said nothing for too long."""
        busy = [rank for rank in self._ranks if rank not in self._done and self._is_busy(rank)]
        return min((self._last_sign[rank] for rank in busy), default=_now()) + self._limits.silence_s

    def _is_busy(self, rank: str) -> bool:
        """A rank that is warm waits for the others until all are."""
        return rank not in self._ready or len(self._ready) == len(self._ranks)

    async def _read(self, child: SupervisedProcess) -> None:
        try:
            while (message := await child.receive()) is not None:
                self._last_sign[child.name] = _now()
                self._take(child.name, message)
                self._changed.set()
        except ValueError as error:  # no message, or one that is too long
            self.stop(
                broken(FailureReason.BACKEND_INITIALISATION, f"{child.name} said something unintelligible: {error}")
            )
            return
        if child.name in self._done:
            return
        if child.name == SAMPLER:
            self._sampler.end()
            self._tell_trend()
            self._report()
            self._changed.set()
            return
        ended = await child.wait()
        phase = self._phase.get(child.name)
        loading = phase in _NOT_LOADED and child.name not in self._ready
        during = f" during {phase.value}" if phase else ""
        last = tail(self._log_dir / f"{child.name}.log")
        said = f"{child.name} {ended}{during}" + (f"; its last lines:\n{last}" if last else ", and wrote nothing")
        # An engine that can't be loaded raises; one that takes its process down has trouble with the machine.
        self.stop(
            broken(FailureReason.BACKEND_INITIALISATION, said) if loading else failed(FailureReason.INFERENCE, said)
        )

    def _take(self, name: str, message: FromProcess) -> None:
        if name == SAMPLER:
            if self._sampler.failure is not None:
                return  # it is being killed
            self._sampler.take(message)
        match message:
            case Loaded():
                self._loaded[name] = message.effective_config
            case Ready():
                self._ready.add(name)
            case Done():
                self._done[name] = message
            case Measured():
                self._measured.add(name)
            case Failed():
                of_machine = name == SAMPLER or message.reason is FailureReason.BACKEND_UNAVAILABLE
                self.stop((broken if of_machine else failed)(message.reason, message.message))
            case PhaseEdge():
                self._phase[name] = message.phase if message.edge == "begin" else None
                if name == self._ranks[0] and message.edge == "begin":
                    self._phase_began = _now()
                    self._ticks.clear()
                    self._report()
            case Tick():
                if name == SAMPLER:
                    self._tell_trend()
                else:
                    self._ticks[name] = message
                self._report()

    def _tell_trend(self) -> None:
        for rank in self._ranks:
            if self._phase.get(rank) is PhaseName.WARMUP:
                self._children[rank].send(PowerSlope(slope=self._sampler.power_slope))

    def _report(self) -> None:
        phase = self._quiet or self._phase.get(self._ranks[0])
        ticks = self._ticks.values()
        rates = [tick.output_rate_tok_s for tick in ticks if tick.output_rate_tok_s is not None]
        fractions = [tick.fraction for tick in ticks if tick.fraction is not None]
        self._on_progress(
            Progress(
                phase=phase.value if phase else "preparing",
                requests_done=sum(tick.requests_done for tick in ticks),
                generated_tokens=sum(tick.generated_tokens for tick in ticks),
                elapsed_s=max(0.0, _now() - self._phase_began) if phase else 0.0,
                fraction=min(fractions) if fractions else None,
                output_rate_tok_s=sum(rates) if rates else None,
                power_w=self._sampler.power_w,
            )
        )

    def _tails(self) -> str:
        return "\n".join(tail(self._log_dir / f"{rank}.log", lines=5, most=500) for rank in self._ranks)


def _timeout(what: str, limit_s: float, name: str) -> AttemptEnded:
    return failed(
        FailureReason.TIMEOUT,
        f"{what} took longer than {limit_s:g} s ({name}); raise the limit or make the run smaller.",
    )


def _now() -> float:
    return asyncio.get_running_loop().time()
