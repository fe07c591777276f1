"""The daemon: registers the worker, then claims and measures one run after another until it shuts down."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID, uuid4

from lem_domain.backends.registry import backend_spec, engine_distributions
from lem_domain.errors import LemError, ProblemCode
from lem_domain.wire.workers import Assignment, ClaimRequest, Device, HeartbeatVerdict, RegisterWorker
from lem_worker.backends.installed import absence, is_served_by_another, version_of
from lem_worker.daemon.attempt import Attempt
from lem_worker.daemon.attempt_end import AttemptEnded, AttemptLost, cancelled, handed_back, lease_expired, paused
from lem_worker.daemon.heartbeat_process import HeartbeatEvent, HeartbeatProcess, LeaseExpired
from lem_worker.daemon.identity import StateFolder
from lem_worker.daemon.idle_baselines import IdleBaselines
from lem_worker.daemon.idle_power import measure_idle_power
from lem_worker.daemon.process_start import ProcessModules
from lem_worker.daemon.recovery import clean_up, recover
from lem_worker.daemon.settings import WorkerSettings
from lem_worker.daemon.temperatures import read_temperatures
from lem_worker.devices.inventory import cpu_device, gpu_devices, simulated_devices
from lem_worker.heartbeat.messages import BootSuperseded, DrainRequested, HeartbeatStart, LeaseVerdict
from lem_worker.models import default_cache_dir
from lem_worker.process import spool
from lem_worker.process.protocol import IdlePower
from lem_worker.server_api import LeaseLost, NoAssignment, ServerApi

logger = logging.getLogger(__name__)

T = TypeVar("T")

CLAIM_WAIT_S = 25.0
"""How long the server may hold a claim open; the API allows at most 30 s."""

MEMORY_WARNING_S = 60.0
"""Interval of the error that names the process that still uses GPU memory."""
FAILURES_BEFORE_PAUSE = 3
"""One or two failures may be due to the runs; more in a row, to the machine."""
FIRST_PAUSE_S = 30.0
LONGEST_PAUSE_S = 600.0
"""The pause doubles with each further failure up to this, so that a repaired machine claims again within minutes."""
SPACE_POLL_S = 10.0
OTHER_WORKERS_POLL_S = 10.0
"""Both conditions end by an action outside this process, of which nothing notifies the daemon."""


class Daemon:
    """One boot of a worker."""

    def __init__(self, settings: WorkerSettings, *, modules: ProcessModules | None = None) -> None:
        self._settings = settings
        self._modules = modules or ProcessModules()
        self._token = _read_token(settings.token_file)
        self._state = StateFolder(settings.state_folder)
        self._superseded = False
        self._baselines = IdleBaselines()
        self._idle_power: tuple[IdlePower, ...] = ()
        self._devices = _inventory(settings, self._state.worker_id)
        self._api = self._connect(self._state.boot_id)
        self._shutdown = asyncio.Event()
        self._attempt: Attempt | None = None
        self._running: asyncio.Task[AttemptEnded | AttemptLost | None] | None = None
        self._signals = 0
        self._runs = 0
        self._failures_in_a_row = 0
        self._last_failure = ""
        self._absence = absence(settings.backend)
        self._run_is_waiting = False

    async def run(self) -> None:
        """Work until a signal, a drain, `max_runs` or `until_idle` ends the worker.

        Raises:
            LemError: the worker can't work: it is not allowed to, or another boot has its identity.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal)
        shutdown = asyncio.create_task(self._shutdown.wait())
        try:
            await self._unless_shutdown(self._begin(), shutdown)
            if self._shutdown.is_set():
                return
            self._heartbeats = HeartbeatProcess(self._heartbeat_start, self._on_event)
            await self._heartbeats.open()
            try:
                if self._settings.idle_check:
                    measured = await self._unless_shutdown(measure_idle_power(self._devices), shutdown)
                    self._idle_power = measured or ()
                await self._claim_loop(shutdown)
            finally:
                await self._heartbeats.close()
                await self._api.sign_off(self._state.boot_id)
            if self._superseded:
                raise _superseded()
        finally:
            shutdown.cancel()
            await self._api.aclose()
            self._state.release()
            logger.info("the worker ended after %d runs", self._runs)

    async def _begin(self) -> None:
        leftovers = self._state.leftovers()
        # In this order: processes of an earlier boot may still write into the spool and hold the devices, and its
        # leases end as soon as this boot registers.
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
        self._heartbeat_start = HeartbeatStart(
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
            logger.warning("every run claimed here ends with backend_unavailable: %s", self._absence)

    async def _claim_loop(self, shutdown: asyncio.Task[bool]) -> None:
        while not self._shutdown.is_set():
            await self._pause_after_failures(shutdown)
            await self._wait_for_space(shutdown)
            if self._absence is not None:
                await self._defer_to_other_workers(shutdown)
            assignment = await self._unless_shutdown(self._claim(), shutdown)
            if assignment is None and self._settings.until_idle:
                return
            if not isinstance(assignment, Assignment):
                self._run_is_waiting = assignment is NoAssignment.RUN_WAITS
                continue
            self._run_is_waiting = False
            await self._work(assignment, shutdown)
            self._runs += 1
            if self._settings.max_runs is not None and self._runs >= self._settings.max_runs:
                return

    async def _claim(self) -> Assignment | NoAssignment | None:
        ends_when_idle = self._settings.until_idle and not self._run_is_waiting
        request = ClaimRequest(
            claim_id=uuid4(),
            boot_id=self._state.boot_id,
            devices=tuple(device.uuid for device in self._devices),
            temperatures_c=await read_temperatures(self._devices),
            wait_s=0 if ends_when_idle else CLAIM_WAIT_S,
        )
        try:
            return await self._api.claim(request)
        except LeaseLost as error:
            if error.problem.code is ProblemCode.BOOT_SUPERSEDED:
                raise _superseded() from error
            return None

    async def _work(self, assignment: Assignment, shutdown: asyncio.Task[bool]) -> None:
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
            on_progress=lambda progress: self._heartbeats.progress(assignment.attempt_id, progress),
            modules=self._modules,
            baselines=self._baselines,
            idle_power=self._idle_power,
        )
        self._attempt = attempt
        self._heartbeats.hold(assignment.attempt_id, assignment.lease_s)
        if self._shutdown.is_set():
            attempt.stop(handed_back())
        self._running = asyncio.create_task(attempt.run(), name="lem-attempt")
        try:
            await asyncio.wait({self._running})
        finally:
            self._attempt = None
            self._heartbeats.release(assignment.attempt_id)
        if self._running.cancelled():
            logger.warning("%s cycle %d: dropped", assignment.display_name, assignment.cycle)
            return
        ended = self._running.result()
        self._count_failure(ended)
        self._log_end(assignment, ended)
        # A run that starts while a dead process still holds GPU memory would measure less free memory, or fail.
        while holder := await self._unless_shutdown(attempt.memory_holder(MEMORY_WARNING_S), shutdown):
            logger.error("%s Nothing is claimed until then.", holder)

    def _log_end(self, assignment: Assignment, ended: AttemptEnded | AttemptLost | None) -> None:
        run = f"{assignment.display_name} cycle {assignment.cycle}"
        match ended:
            case None:
                logger.info("%s: completed", run)
            case AttemptEnded():
                logger.warning("%s: %s (%s): %s", run, ended.outcome, ended.reason.value, ended)
            case AttemptLost():
                logger.warning("%s: the lease was lost: %s", run, ended)

    def _count_failure(self, ended: AttemptEnded | AttemptLost | None) -> None:
        """Count failures of the machine. Only a completed run resets the count: others prove nothing about it."""
        if ended is None:
            self._failures_in_a_row = 0
        elif isinstance(ended, AttemptEnded) and ended.machine_fault:
            self._failures_in_a_row += 1
            self._last_failure = str(ended).partition("\n")[0]

    async def _pause_after_failures(self, shutdown: asyncio.Task[bool]) -> None:
        """Circuit breaker: a broken machine must not fail all runs of a campaign."""
        beyond = self._failures_in_a_row - FAILURES_BEFORE_PAUSE
        if beyond < 0:
            return
        pause_s = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2**beyond)
        logger.error(
            "%d runs in a row failed because of this machine; claiming nothing for %.0f s. The last failure: %s",
            self._failures_in_a_row,
            pause_s,
            self._last_failure,
        )
        await asyncio.wait({shutdown}, timeout=pause_s)

    async def _wait_for_space(self, shutdown: asyncio.Task[bool]) -> None:
        """Wait until the spool has space for a chunk, so that no run is claimed whose evidence can't be stored.

        Raises:
            SpoolError: there is no space, and `until_idle` is set.
        """
        logged = False
        while not self._shutdown.is_set():
            try:
                spool.require_space(self._state.spool)
            except spool.SpoolError as error:
                if self._settings.until_idle:
                    raise
                if not logged:
                    logger.error("claiming nothing: %s", error)
                    logged = True
                await asyncio.wait({shutdown}, timeout=SPACE_POLL_S)
            else:
                if logged:
                    logger.info("the spool can be written again")
                return

    async def _defer_to_other_workers(self, shutdown: asyncio.Task[bool]) -> None:
        """Wait while another worker has the engine that is missing here.

        Without such a worker, claimed runs fail with the reason, which is better than waiting without end.
        """
        while not self._shutdown.is_set():
            workers = await self._unless_shutdown(self._api.workers(), shutdown)
            if workers is None or not is_served_by_another(
                self._settings.backend, workers, own_id=self._state.worker_id
            ):
                return
            if self._settings.until_idle:
                self._shutdown.set()
                return
            await asyncio.wait({shutdown}, timeout=OTHER_WORKERS_POLL_S)

    async def _unless_shutdown(self, work: Coroutine[Any, Any, T], shutdown: asyncio.Task[bool]) -> T | None:
        """Return the result of the work; None when the worker shuts down first, which cancels the work."""
        task = asyncio.create_task(work)
        await asyncio.wait({task, shutdown}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return None

    def _on_signal(self) -> None:
        self._signals += 1
        self._shutdown.set()
        if self._attempt is None:
            return
        if self._signals == 1:
            logger.info("shutting down and handing the run back (a second signal ends at once)")
            self._attempt.stop(handed_back())
        elif self._running is not None:
            logger.warning("ending at once; unsent evidence is kept in the spool")
            self._attempt.kill_without_grace()
            self._running.cancel()

    def _on_event(self, event: HeartbeatEvent) -> None:
        attempt = self._attempt
        match event:
            case LeaseVerdict() if attempt is not None and attempt.assignment.attempt_id == event.attempt_id:
                if event.verdict is HeartbeatVerdict.CANCEL:
                    attempt.stop(cancelled())
                elif event.verdict is HeartbeatVerdict.PAUSE:
                    attempt.stop(paused())
                elif event.verdict is HeartbeatVerdict.LOST:
                    attempt.stop(AttemptLost("the server gave the lease to another worker or ended it"))
            case LeaseExpired() if attempt is not None and attempt.assignment.attempt_id == event.attempt_id:
                attempt.stop(lease_expired())
            case DrainRequested():
                if not self._shutdown.is_set():
                    logger.info("drained: ending after the current run")
                    self._shutdown.set()
            case BootSuperseded():
                self._superseded = True
                self._shutdown.set()
                if attempt is not None:
                    attempt.stop(AttemptLost("another boot of this worker is registered"))

    def _connect(self, boot_id: UUID) -> ServerApi:
        return ServerApi(self._settings.server, self._token, worker_id=self._state.worker_id, boot_id=boot_id)


def _superseded() -> LemError:
    return LemError(
        "the server does not accept this boot of the worker any more. If another worker has the same identity, set a "
        "different --state-dir for each; if the server's database was restored, start the worker again."
    )


def _inventory(settings: WorkerSettings, worker_id: str) -> tuple[Device, ...]:
    if backend_spec(settings.backend).is_simulated:
        return simulated_devices(worker_id, settings.devices)
    return gpu_devices() or (cpu_device(),)


def _versions() -> dict[str, str]:
    names = ("llm-energy-measurement", "transformers", "codecarbon", *engine_distributions())
    return {name: found for name in names if (found := version_of(name)) is not None}


def _read_token(path: Path) -> str:
    try:
        token = path.read_text().strip()
    except OSError as error:
        raise LemError(
            f"the token file {path} can't be read ({error.strerror}); start the server first, or set --token-file."
        ) from error
    if not token:
        raise LemError(f"the token file {path} is empty; set --token-file to a file that holds an access token.")
    return token
