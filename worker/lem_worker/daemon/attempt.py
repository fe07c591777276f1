"""One attempt at a run, from its assignment to its completion or its end without a result."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

from pydantic import BaseModel, ConfigDict
from pydantic.types import JsonValue

from lem_domain.errors import ProblemCode
from lem_domain.evidence.streams import SAMPLER, rank_name
from lem_domain.ids import AttemptId
from lem_domain.states import FailureReason
from lem_domain.wire.runs import Progress
from lem_domain.wire.workers import Assignment, Device, DeviceKind, EndAttempt, ProcessCompletion, StartAttempt
from lem_worker.backends.installed import absence
from lem_worker.daemon.attempt_end import AttemptEnded, AttemptLost, cancelled, machine_failure, run_failure
from lem_worker.daemon.environment import snapshot
from lem_worker.daemon.idle_baselines import IdleBaselines
from lem_worker.daemon.input_digests import input_facts
from lem_worker.daemon.preparation import Prepared, prepare
from lem_worker.daemon.process_start import ProcessModules, ProcessStarter
from lem_worker.daemon.supervision import Supervision
from lem_worker.daemon.upload import Uploader
from lem_worker.devices.gpu_memory import MemoryBaseline, attempt_processes, memory_before, wait_until_free
from lem_worker.process import spool
from lem_worker.process.children import Child, SupervisedProcess, kill_leftovers
from lem_worker.process.protocol import BaselineContext, BaselineTaken, Finish, Go, IdlePower, Stop, WarmUp
from lem_worker.server_api import LeaseLost, NotAllowed, ServerApi, ServerRefused

logger = logging.getLogger(__name__)


MEMORY_FREE_WITHIN_S = 30.0
"""A driver needs a moment to reclaim the memory of a dead process; the end of the attempt waits no longer than this."""


class SpooledAssignment(BaseModel):
    """Content of `assignment.json` in the attempt's folder, from which another boot of the worker can complete it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    attempt_id: AttemptId
    boot_id: UUID
    processes: tuple[str, ...]


class Attempt:
    """One attempt at a run."""

    def __init__(
        self,
        assignment: Assignment,
        *,
        api: ServerApi,
        boot_id: UUID,
        spool_dir: Path,
        cache_dir: Path,
        devices: tuple[Device, ...],
        kill_grace_s: float,
        on_progress: Callable[[Progress], None],
        modules: ProcessModules,
        baselines: IdleBaselines,
        idle_power: tuple[IdlePower, ...] = (),
    ) -> None:
        self.assignment = assignment
        self._config = assignment.config
        self._api = api
        self._dir = spool_dir / assignment.attempt_id
        self._cache_dir = cache_dir
        self._devices = devices
        self._kill_grace_s = kill_grace_s
        self._baselines = baselines
        self._boot_id = boot_id
        ranks = tuple(rank_name(rank) for rank in range(self._config.processes))
        self._processes = (*ranks, SAMPLER)
        self._supervision = Supervision(self._config.limits, ranks, on_progress, log_dir=self._dir)
        self._starter = ProcessStarter(
            assignment,
            modules=modules,
            attempt_dir=self._dir,
            devices=devices,
            supervision=self._supervision,
            idle_power=idle_power,
        )
        self._uploader = Uploader(api, assignment.attempt_id, self._dir)
        self._refused = False
        self._memory_before: MemoryBaseline = {}
        self._memory_waited = False
        self._input_facts: dict[str, JsonValue] = {}

    def stop(self, why: AttemptEnded | AttemptLost) -> None:
        """End the attempt from outside: cancelled, interrupted, or its lease lost."""
        self._supervision.stop(why)

    async def memory_holder(self, within_s: float) -> str | None:
        """Wait up to `within_s` seconds until the GPU memory is free; returns a sentence about the holder otherwise."""
        return await wait_until_free(
            self._devices,
            baseline=self._memory_before,
            timeout_s=within_s,
            belongs=attempt_processes(self.assignment.attempt_id),
        )

    def kill_without_grace(self) -> None:
        """Send SIGKILL right after SIGTERM from now on."""
        self._kill_grace_s = 0

    async def run(self) -> AttemptEnded | AttemptLost | None:
        """Measure the run; returns None when it is completed, else why it is not. No process is left then.

        Raises:
            NotAllowed: the server does not accept this worker any more; the spool keeps the evidence.
        """
        self._memory_before = await memory_before(self._devices)
        try:
            why = await self._failure_of(self._supervision.guard(self._measure()))
            if why is not None:
                await self._kill_all()
                return await self._give_up(why)
        finally:
            await self._kill_all()
        spool.remove_attempt(self._dir)
        return None

    async def _failure_of(self, work: Coroutine[Any, Any, object]) -> AttemptEnded | AttemptLost | None:
        """Do the work and translate its error into an end of the attempt; no other code does so."""
        try:
            await work
        except (AttemptEnded, AttemptLost) as why:
            return why
        except LeaseLost as error:
            return AttemptLost(str(error))
        except NotAllowed:
            raise
        except ServerRefused as error:
            self._refused = True
            return run_failure(FailureReason.INVALID_EVIDENCE, f"the server refused the evidence: {error}")
        except spool.SpoolError as error:
            return machine_failure(FailureReason.BACKEND_UNAVAILABLE, str(error))
        except Exception as error:
            logger.exception("an internal error of the worker ended %s", self.assignment.attempt_id)
            return machine_failure(
                FailureReason.BACKEND_UNAVAILABLE,
                f"an internal error of the worker ({type(error).__name__}: {error}); please report it with its log.",
            )
        return None

    async def _measure(self) -> None:
        prepared = await self._prepare()
        sampler = await self._starter.start_sampler()
        await self._supervision.until_sampling(
            sampler, required=self._config.energy.required, grace_s=self._kill_grace_s
        )
        await self._idle_baseline(sampler)
        ranks = await self._starter.start_ranks(prepared)
        uploading = asyncio.create_task(self._uploader.run(), name="lem-upload")
        self._supervision.watch(uploading)
        try:
            await self._run_window(sampler, ranks)
        finally:
            uploading.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await uploading
        # Before the completion: with it the server may lease the devices to another worker.
        await self._supervision.until_gone(self._kill_grace_s)
        await self._kill_all()
        await self._uploader.complete(self._processes)

    async def _prepare(self) -> Prepared:
        missing = absence(self._config.backend)
        if missing is not None:
            raise run_failure(FailureReason.BACKEND_UNAVAILABLE, missing)
        attempt_id = self.assignment.attempt_id
        # Before any process starts, so that another boot finds and ends them by the folder's name.
        spool.write_model(
            self._dir / "assignment.json",
            SpooledAssignment(attempt_id=attempt_id, boot_id=self._boot_id, processes=self._processes),
        )
        prepared = await self._supervision.while_loading(
            prepare(self._config, self._api, attempt_id=attempt_id, cache_dir=self._cache_dir),
            "finding the model and the prompts",
        )
        self._input_facts = {
            **prepared.files,
            **input_facts(
                self._config,
                sent=prepared.prompts,
                source=prepared.prompt_facts,
                model_files=prepared.model.file_digests,
            ),
        }
        return prepared

    async def _run_window(self, sampler: Child, ranks: Sequence[SupervisedProcess]) -> None:
        """Bring the loaded ranks through warm-up and window to their sealed evidence."""
        effective = await self._supervision.until_loaded()
        self._require_as_requested()
        await self._baseline(sampler, "ready")
        for rank in ranks:
            rank.send(WarmUp(power_known=self._supervision.sampler.power_w is not None))
        await self._supervision.until_ready()
        settle = self._config.settle
        if settle.temperature_c is not None or settle.idle_power:
            await self._supervision.settle(sampler, limit_s=settle.max_s)
        # In a thread: the snapshot runs git and reads many files, and the processes' messages must not wait for it.
        facts = await asyncio.to_thread(snapshot, self._devices, self._supervision.sampler.device_facts)
        await self._open_window(StartAttempt(environment={**facts, **self._input_facts}, effective_config=effective))
        for rank in ranks:
            rank.send(Go())
        await self._supervision.until_measured()
        await self._baseline(sampler, "ready_after")
        for rank in ranks:
            rank.send(Finish())
        for name, done in (await self._supervision.until_done()).items():
            marker = ProcessCompletion(streams=done.streams, summary=done.summary)
            spool.write_completion_marker(self._dir, name, marker)
        sampler.send(Stop())
        spool.write_completion_marker(self._dir, SAMPLER, await self._sampler_marker(sampler))

    async def _idle_baseline(self, sampler: Child) -> None:
        if not self._takes_baselines:
            return
        energy = self._config.energy
        cached = self._baselines.find(self._devices, energy, ttl_s=self._config.baseline.ttl_s)
        if cached is not None:
            sampler.send(cached)
            return
        taken = await self._baseline(sampler, "idle")
        if taken is not None and taken.stationary:
            self._baselines.keep(self._devices, energy, taken.parts_w, self.assignment.attempt_id)

    async def _baseline(self, sampler: Child, context: BaselineContext) -> BaselineTaken | None:
        if not self._takes_baselines:
            return None
        config = self._config.baseline
        taken = await self._supervision.baseline(sampler, context, limit_s=config.max_s)
        if config.required and (missing := self._without_power(taken)):
            raise machine_failure(
                FailureReason.BACKEND_INITIALISATION,
                f"no source measured the power of {missing} to the end of the baseline {context!r}, and "
                "baseline.required is set; repair the source, or set baseline.required to false.",
            )
        return taken

    def _without_power(self, taken: BaselineTaken | None) -> str | None:
        """The leased accelerators without power in a baseline, or the host where none is leased."""
        accelerators = [device.uuid for device in self._devices if device.kind is not DeviceKind.CPU]
        if taken is None or taken.power_w is None:
            return ", ".join(accelerators) or "the host"
        return ", ".join(uuid for uuid in accelerators if uuid not in taken.parts_w) or None

    @property
    def _takes_baselines(self) -> bool:
        return self._config.baseline.enabled and self._config.record.power

    def _require_as_requested(self) -> None:
        for effective in self._supervision.effective_configs:
            for parameter in effective.parameters:
                if not parameter.confirmed and parameter.name not in self._config.allow:
                    raise run_failure(
                        FailureReason.NOT_AS_REQUESTED,
                        f"{parameter.name} was requested as {parameter.requested!r}, but the engine reports "
                        f"{parameter.effective!r}; request a supported value, or allow the difference with "
                        f"allow: [{parameter.name}].",
                    )

    async def _open_window(self, request: StartAttempt) -> None:
        try:
            await self._api.start(self.assignment.attempt_id, request)
        except LeaseLost:
            raise
        except ServerRefused as error:
            # The run was cancelled; the next heartbeat would have reported it.
            if error.problem.code is ProblemCode.CONFLICT:
                raise cancelled() from error
            raise

    async def _sampler_marker(self, sampler: Child) -> ProcessCompletion:
        """The sampler's completion marker; one with the reason if it died or hangs, which costs the energy only."""
        done = await self._supervision.until_sampler_done()
        if done is not None:
            return ProcessCompletion(streams=done.streams, summary=done.summary)
        if self._config.energy.required:
            raise machine_failure(
                FailureReason.BACKEND_INITIALISATION, "the sampler died or hangs, and energy.required is set."
            )
        failure = self._supervision.sampler.failure
        if failure is None:
            await sampler.kill(self._kill_grace_s)
            failure = f"the sampler {await sampler.wait()}"
        sealed = tuple(one for one in spool.sealed_manifests(self._dir) if one.process == SAMPLER)
        return ProcessCompletion(streams=sealed, summary={"failed": failure})

    async def _give_up(self, why: AttemptEnded | AttemptLost) -> AttemptEnded | AttemptLost | None:
        """Send the evidence and the end to the server; complete an interrupted attempt whose evidence is whole.

        Waits without limit for the server's answer: only the server knows whether the lease is lost, and until then
        the folder is kept.
        """
        if (
            isinstance(why, AttemptEnded)
            and why.outcome == "interrupted"
            and spool.is_complete(self._dir, self._processes)
        ):
            unfinished = await self._failure_of(self._uploader.complete(self._processes))
            if unfinished is None:
                spool.remove_attempt(self._dir)
                return None
            why = unfinished
        if isinstance(why, AttemptEnded):
            unsent = await self._failure_of(self._uploader.send_pending())
            if isinstance(unsent, AttemptEnded):
                logger.error("a part of the evidence of %s was not sent: %s", self.assignment.attempt_id, unsent)
            refusal = await self._failure_of(self._api.end(self.assignment.attempt_id, self._end_of(why)))
            if isinstance(refusal, AttemptLost):
                why = refusal
            elif refusal is not None:
                logger.error("the server refused the end of %s: %s", self.assignment.attempt_id, refusal)
        if self._refused and isinstance(why, AttemptEnded):
            kept = spool.move_to_refused(self._dir)
            logger.error("the refused evidence is kept in %s; remove it after you have examined it", kept)
        else:
            spool.remove_attempt(self._dir)
        return why

    def _end_of(self, why: AttemptEnded) -> EndAttempt:
        return EndAttempt(
            outcome=why.outcome,
            reason=why.reason,
            # An engine may print any character, but PostgreSQL's text type can't hold U+0000.
            message=str(why).replace("\x00", "\N{REPLACEMENT CHARACTER}")[:4000],
            environment={**snapshot(self._devices, self._supervision.sampler.device_facts), **self._input_facts},
            effective_config=self._supervision.leader.effective_config,
        )

    async def _kill_all(self) -> None:
        """End the processes with their groups, then those that left their group, and wait for free GPU memory."""
        await self._supervision.kill_all(self._kill_grace_s)
        await kill_leftovers([self.assignment.attempt_id], grace_s=self._kill_grace_s)
        if self._starter.started and not self._memory_waited:
            holder = await self.memory_holder(MEMORY_FREE_WITHIN_S)
            if holder is not None:
                # `run` calls this twice or more; the daemon waits on before its next claim.
                self._memory_waited = True
                logger.error("%s", holder)
