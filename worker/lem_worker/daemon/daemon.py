"""The daemon: registers, claims one run after another, supervises each, and hands back what it holds at its end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import Coroutine
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID, uuid4

from lem_domain.backends.registry import backend_spec, engine_distributions
from lem_domain.errors import LemError, ProblemCode
from lem_domain.wire.workers import Assignment, BeatVerdict, ClaimRequest, Device, RegisterWorker
from lem_worker.backends.installed import absence, is_served_by_another
from lem_worker.daemon.attempt import Attempt, Modules
from lem_worker.daemon.ending import AttemptEnded, AttemptLost, cancelled, handed_back, out_of_touch, paused
from lem_worker.daemon.heartbeats import BeatProcess, Expired, News
from lem_worker.daemon.identity import StateFolder
from lem_worker.daemon.idle_baselines import IdleBaselines
from lem_worker.daemon.recovery import clean_up, recover
from lem_worker.daemon.settings import WorkerSettings
from lem_worker.daemon.temperatures import temperatures_c
from lem_worker.devices.inventory import cpu_device, gpu_devices, simulated_devices
from lem_worker.heartbeat.sender import BeatStart, Drain, Superseded, Verdict
from lem_worker.models import default_cache_dir
from lem_worker.process import spool
from lem_worker.server_api import Later, LeaseLost, ServerApi

logger = logging.getLogger(__name__)

T = TypeVar("T")

CLAIM_WAIT_S = 25.0
MEMORY_LOOK_S = 60.0
FAILURES_BEFORE_PAUSE = 3
FIRST_PAUSE_S = 30.0
LONGEST_PAUSE_S = 600.0
SPACE_POLL_S = 10.0
ELSEWHERE_POLL_S = 10.0


class Daemon:
    """One worker, from its start to its end."""

    def __init__(self, settings: WorkerSettings, *, modules: Modules | None = None) -> None:
        self._settings = settings
        self._modules = modules or Modules()
        self._token = _read_token(settings.token_file)
        self._state = StateFolder(settings.state_folder)
        self._superseded = False
        self._baselines = IdleBaselines()
        self._devices = _inventory(settings, self._state.worker_id)
        self._api = self._connect(self._state.boot_id)
        self._ending = asyncio.Event()
        self._attempt: Attempt | None = None
        self._running: asyncio.Task[AttemptEnded | AttemptLost | None] | None = None
        self._signals = 0
        self._runs = 0
        self._failures_in_a_row = 0
        self._last_failure = ""
        self._absence = absence(settings.backend)
        self._something_waits = False

    async def run(self) -> None:
        """Work until told to end, or until `max_runs` or `until_idle` is reached."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal)
        ending = asyncio.create_task(self._ending.wait())
        try:
            await self._until_ending(self._begin(), ending)
            if self._ending.is_set():
                return
            self._beats = BeatProcess(self._beat_start, self._on_news)
            await self._beats.open()
            try:
                await self._claim_loop(ending)
            finally:
                await self._beats.close()
                await self._api.sign_off(self._state.boot_id)
            if self._superseded:
                raise _superseded()
        finally:
            ending.cancel()
            await self._api.aclose()
            self._state.release()
            logger.info("the worker has ended after %d runs", self._runs)

    async def _begin(self) -> None:
        leftovers = self._state.leftovers()
        await clean_up(leftovers)
        await recover(leftovers, self._connect)
        registered = await self._api.register(
            RegisterWorker(
                id=self._state.worker_id,
                boot_id=self._state.boot_id,
                name=self._settings.name or f"{socket.gethostname()} ({self._settings.backend.value})",
                host=socket.gethostname(),
                backend=self._settings.backend.value,
                devices=self._devices,
                versions=_versions(),
            )
        )
        self._beat_start = BeatStart(
            server=self._settings.server,
            token=self._token,
            worker_id=self._state.worker_id,
            boot_id=self._state.boot_id,
            interval_s=registered.beat_interval_s,
        )
        logger.info(
            "registered at %s as %s with %d device(s)", self._settings.server, registered.id, len(self._devices)
        )
        if self._absence is not None:
            logger.warning("every run that is claimed here ends as backend_unavailable: %s", self._absence)

    async def _claim_loop(self, ending: asyncio.Task[bool]) -> None:
        while not self._ending.is_set():
            await self._pause_after_failures(ending)
            await self._wait_for_space(ending)
            if self._absence is not None:
                await self._leave_it_to_others(ending)
            assignment = await self._until_ending(self._claim(), ending)
            if assignment is None and self._settings.until_idle:
                return
            if not isinstance(assignment, Assignment):
                self._something_waits = assignment is Later.WAIT
                continue
            self._something_waits = False
            await self._work(assignment, ending)
            self._runs += 1
            if self._settings.max_runs is not None and self._runs >= self._settings.max_runs:
                return

    async def _claim(self) -> Assignment | Later | None:
        ends_when_idle = self._settings.until_idle and not self._something_waits
        request = ClaimRequest(
            claim_id=uuid4(),
            boot_id=self._state.boot_id,
            devices=tuple(device.uuid for device in self._devices),
            temperatures_c=await temperatures_c(self._devices),
            wait_s=0 if ends_when_idle else CLAIM_WAIT_S,
        )
        try:
            return await self._api.claim(request)
        except LeaseLost as error:
            if error.problem.code is ProblemCode.BOOT_SUPERSEDED:
                raise _superseded() from error
            return None

    async def _work(self, assignment: Assignment, ending: asyncio.Task[bool]) -> None:
        logger.info("%s cycle %d: begin (%s)", assignment.display_name, assignment.cycle, assignment.run_id)
        by_uuid = {device.uuid: device for device in self._devices}
        attempt = Attempt(
            assignment,
            api=self._api,
            boot_id=self._state.boot_id,
            spool_dir=self._state.spool,
            cache_dir=self._settings.cache_dir or default_cache_dir(),
            devices=tuple(by_uuid[uuid] for uuid in assignment.devices),
            kill_grace_s=self._settings.kill_grace_s,
            on_progress=lambda progress: self._beats.progress(assignment.attempt_id, progress),
            modules=self._modules,
            baselines=self._baselines,
        )
        self._attempt = attempt
        self._beats.hold(assignment.attempt_id, assignment.lease_s)
        if self._ending.is_set():
            attempt.stop(handed_back())
        self._running = asyncio.create_task(attempt.run(), name="lem-attempt")
        try:
            await asyncio.wait({self._running})
        finally:
            self._attempt = None
            self._beats.release(assignment.attempt_id)
        if self._running.cancelled():
            logger.warning("%s cycle %d: dropped", assignment.display_name, assignment.cycle)
            return
        ended = self._running.result()
        self._count_failure(ended)
        self._tell(assignment, ended)
        while held := await self._until_ending(attempt.memory_held(MEMORY_LOOK_S), ending):
            logger.error("%s Nothing is claimed until then.", held)

    def _tell(self, assignment: Assignment, ended: AttemptEnded | AttemptLost | None) -> None:
        if ended is None:
            logger.info("%s cycle %d: completed", assignment.display_name, assignment.cycle)
        elif isinstance(ended, AttemptEnded):
            logger.warning(
                "%s cycle %d: %s (%s): %s",
                assignment.display_name,
                assignment.cycle,
                ended.outcome,
                ended.reason.value,
                ended,
            )
        else:
            logger.warning("%s cycle %d: the lease was lost: %s", assignment.display_name, assignment.cycle, ended)

    def _count_failure(self, ended: AttemptEnded | AttemptLost | None) -> None:
        """Only a result proves that the machine is well: a run that failed by itself, or was stopped, says nothing."""
        if ended is None:
            self._failures_in_a_row = 0
        elif isinstance(ended, AttemptEnded) and ended.speaks_of_machine:
            self._failures_in_a_row += 1
            self._last_failure = str(ended).partition("\n")[0]

    async def _pause_after_failures(self, ending: asyncio.Task[bool]) -> None:
        """The circuit breaker: a broken machine must not burn through a whole campaign."""
        beyond = self._failures_in_a_row - FAILURES_BEFORE_PAUSE
        if beyond < 0:
            return
        pause_s = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2**beyond)
        logger.error(
            "%d runs in a row failed because of this machine; claiming nothing for %.0f s. The last one: %s",
            self._failures_in_a_row,
            pause_s,
            self._last_failure,
        )
        await asyncio.wait({ending}, timeout=pause_s)

    async def _wait_for_space(self, ending: asyncio.Task[bool]) -> None:
        """A run whose evidence can't be kept is not claimed.

        Raises:
            SpoolError: there is no space, and this worker is to end where there is nothing to do.
        """
        said = False
        while not self._ending.is_set():
            try:
                spool.require_space(self._state.spool)
            except spool.SpoolError as error:
                if self._settings.until_idle:
                    raise
                if not said:
                    logger.error("claiming nothing: %s", error)
                    said = True
                await asyncio.wait({ending}, timeout=SPACE_POLL_S)
            else:
                if said:
                    logger.info("the spool can be written again")
                return

    async def _leave_it_to_others(self, ending: asyncio.Task[bool]) -> None:
        """A worker without its engine says so for each run that nobody else can measure, and takes none from those who
        can."""
        while not self._ending.is_set():
            workers = await self._until_ending(self._api.workers(), ending)
            if workers is None or not is_served_by_another(
                self._settings.backend, workers, own_id=self._state.worker_id
            ):
                return
            if self._settings.until_idle:
                self._ending.set()
                return
            await asyncio.wait({ending}, timeout=ELSEWHERE_POLL_S)

    async def _until_ending(self, work: Coroutine[Any, Any, T], ending: asyncio.Task[bool]) -> T | None:
        """The work's result, or None when the worker was told to end before it."""
        task = asyncio.create_task(work)
        await asyncio.wait({task, ending}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return None

    def _on_signal(self) -> None:
        self._signals += 1
        self._ending.set()
        if self._attempt is None:
            return
        if self._signals == 1:
            logger.info("told to end; handing back what is held (a second signal ends at once)")
            self._attempt.stop(handed_back())
        elif self._running is not None:
            logger.warning("told to end at once; what was not sent stays in the spool")
            self._attempt.hurry()
            self._running.cancel()

    def _on_news(self, news: News) -> None:
        held = self._attempt
        match news:
            case Verdict() if held is not None and held.assignment.attempt_id == news.attempt_id:
                if news.verdict is BeatVerdict.CANCEL:
                    held.stop(cancelled())
                elif news.verdict is BeatVerdict.PAUSE:
                    held.stop(paused())
                elif news.verdict is BeatVerdict.LOST:
                    held.stop(AttemptLost("the server says that the lease is not this worker's any more"))
            case Expired() if held is not None and held.assignment.attempt_id == news.attempt_id:
                held.stop(out_of_touch())
            case Drain():
                if not self._ending.is_set():
                    logger.info("drained: finishing what is held, then ending")
                    self._ending.set()
            case Superseded():
                self._superseded = True
                self._ending.set()
                if held is not None:
                    held.stop(AttemptLost("this boot of the worker is not registered any more"))

    def _connect(self, boot_id: UUID) -> ServerApi:
        return ServerApi(self._settings.server, self._token, worker_id=self._state.worker_id, boot_id=boot_id)


def _superseded() -> LemError:
    return LemError(
        "the server does not know this start of the worker any more: another worker has its identity (give each its "
        "own --state-dir), or the server's database was restored (start the worker again)."
    )


def _inventory(settings: WorkerSettings, worker_id: str) -> tuple[Device, ...]:
    if backend_spec(settings.backend).is_simulated:
        return simulated_devices(worker_id, settings.devices)
    return gpu_devices() or (cpu_device(),)


def _versions() -> dict[str, str]:
    found = {}
    for name in ("llm-energy-measurement", "transformers", "codecarbon", *engine_distributions()):
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _read_token(path: Path) -> str:
    try:
        token = path.read_text().strip()
    except OSError as error:
        raise LemError(
            f"the token file {path} can't be read ({error.strerror}); start the server first, or set --token-file."
        ) from error
    if not token:
        raise LemError(f"the token file {path} is empty; set --token-file to one with a token.")
    return token
