"""Supervises one attempt: starts its processes, follows what they say, keeps the limits, and brings it to its end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

from pydantic import BaseModel, ConfigDict
from pydantic.types import JsonValue

from lem_domain.backends.registry import backend_spec
from lem_domain.backends.spec import LaunchMode
from lem_domain.errors import ProblemCode
from lem_domain.evidence.streams import SAMPLER, rank_name
from lem_domain.ids import AttemptId
from lem_domain.states import FailureReason
from lem_domain.wire.runs import Progress
from lem_domain.wire.workers import Assignment, Device, DeviceKind, EndAttempt, ProcessCompletion, StartAttempt
from lem_worker.backends.installed import absence
from lem_worker.daemon.ending import AttemptEnded, AttemptLost, broken, cancelled, failed
from lem_worker.daemon.environment import snapshot
from lem_worker.daemon.idle_baselines import IdleBaselines
from lem_worker.daemon.input_digests import given
from lem_worker.daemon.preparation import Prepared, prepare
from lem_worker.daemon.rank_launch import launch
from lem_worker.daemon.supervision import Supervision
from lem_worker.daemon.upload import Uploader
from lem_worker.devices.gpu_memory import MemoryBaseline, attempt_processes, memory_before, wait_until_free
from lem_worker.process import spool
from lem_worker.process.children import Child, SupervisedProcess, kill_leftovers
from lem_worker.process.protocol import (
    BaselineContext,
    BaselineTaken,
    Finish,
    Go,
    RankJob,
    SamplerJob,
    Stop,
    WarmUp,
)
from lem_worker.server_api import LeaseLost, NotAllowed, ServerApi, ServerRefused

logger = logging.getLogger(__name__)


MEMORY_FREE_WITHIN_S = 30.0
"""A driver needs a moment to take a dead process's memory back; after so long the server is told all the same."""


class Modules(NamedTuple):
    """What is started as rank and as sampler."""

    rank: str = "lem_worker.rank.main"
    sampler: str = "lem_worker.sampler.main"


class SpooledAssignment(BaseModel):
    """What lies in the attempt's folder, so that another start of the worker can finish it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    attempt_id: AttemptId
    boot_id: UUID
    processes: tuple[str, ...]


class Attempt:
    """One try at a run."""

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
        modules: Modules,
        baselines: IdleBaselines,
    ) -> None:
        self.assignment = assignment
        self._api = api
        self._dir = spool_dir / assignment.attempt_id
        self._cache_dir = cache_dir
        self._devices = devices
        self._kill_grace_s = kill_grace_s
        self._modules = modules
        self._baselines = baselines
        self._boot_id = boot_id
        config = assignment.config
        self._ranks = tuple(rank_name(rank) for rank in range(config.processes))
        self._processes = (*self._ranks, SAMPLER)
        self._supervision = Supervision(config.limits, self._ranks, on_progress, log_dir=self._dir)
        self._uploader = Uploader(api, assignment.attempt_id, self._dir)
        self._refused = False
        self._memory_before: MemoryBaseline = {}
        self._started = False
        self._given: dict[str, JsonValue] = {}
        self._memory_is_held = False

    def stop(self, why: AttemptEnded | AttemptLost) -> None:
        """Bring the attempt to an end from outside: cancelled, interrupted, or its lease lost."""
        self._supervision.stop(why)

    async def memory_held(self, within_s: float) -> str | None:
        """Wait until the memory of the leased GPUs is free again, at most so long; else who holds it, as a sentence."""
        return await wait_until_free(
            self._devices,
            baseline=self._memory_before,
            timeout_s=within_s,
            belongs=attempt_processes(self.assignment.attempt_id),
        )

    def hurry(self) -> None:
        """Whatever is killed from now on gets no grace."""
        self._kill_grace_s = 0

    async def run(self) -> AttemptEnded | AttemptLost | None:
        """Measure. None when the attempt is completed, else why it is not; none of its processes lives then.

        Raises:
            NotAllowed: the server does not accept this worker any more; the evidence stays in the spool.
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
        """Do the work; says why it could not be done. The one place where an error becomes an attempt's end."""
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
            return failed(FailureReason.INVALID_EVIDENCE, f"the server refused what was sent: {error}")
        except spool.SpoolError as error:
            return broken(FailureReason.BACKEND_UNAVAILABLE, str(error))
        except Exception as error:
            logger.exception("the worker itself failed at %s", self.assignment.attempt_id)
            return broken(
                FailureReason.BACKEND_UNAVAILABLE,
                f"the worker itself failed ({type(error).__name__}: {error}); its log says where, please report it.",
            )
        return None

    async def _measure(self) -> None:
        config = self.assignment.config
        missing = absence(config.backend)
        if missing is not None:
            raise failed(FailureReason.BACKEND_UNAVAILABLE, missing)
        marker = SpooledAssignment(
            attempt_id=self.assignment.attempt_id, boot_id=self._boot_id, processes=self._processes
        )
        spool.write_model(self._dir / "assignment.json", marker)
        prepared = await self._supervision.until_prepared(
            prepare(config, self._api, attempt_id=self.assignment.attempt_id, cache_dir=self._cache_dir)
        )
        facts_given = given(
            config,
            sent=prepared.prompts,
            source=prepared.prompt_facts,
            model_files=prepared.model.file_digests,
        )
        self._given = {**prepared.files, **facts_given}
        sampler = await self._start_sampler()
        await self._supervision.until_sampling(sampler, required=config.energy.required, grace_s=self._kill_grace_s)
        await self._idle_baseline(sampler)
        ranks = await self._start_ranks(prepared)
        uploading = asyncio.create_task(self._uploader.run(), name="lem-upload")
        self._supervision.watch(uploading)
        try:
            effective = await self._supervision.until_loaded()
            self._require_as_requested()
            await self._baseline(sampler, "ready")
            for rank in ranks:
                rank.send(WarmUp(power_known=self._supervision.power_known))
            await self._supervision.until_ready()
            if config.settle.temperature_c is not None or config.settle.idle_power:
                await self._supervision.settle(sampler, limit_s=config.settle.max_s)
            facts = await asyncio.to_thread(snapshot, self._devices, self._supervision.device_facts)
            environment: dict[str, JsonValue] = {**facts, **self._given}
            await self._open_window(StartAttempt(environment=environment, effective_config=effective))
            for rank in ranks:
                rank.send(Go())
            await self._supervision.until_measured()
            await self._baseline(sampler, "ready_after")
            for rank in ranks:
                rank.send(Finish())
            for name, message in (await self._supervision.until_done()).items():
                completion = ProcessCompletion(streams=message.streams, summary=message.summary)
                spool.write_completion_marker(self._dir, name, completion)
            sampler.send(Stop())
            spool.write_completion_marker(self._dir, SAMPLER, await self._sampler_marker(sampler))
        finally:
            uploading.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await uploading
        # The server gives the devices to somebody else as soon as it knows that the attempt is over.
        await self._supervision.until_gone(self._kill_grace_s)
        await self._kill_all()
        await self._uploader.complete(self._processes)

    async def _idle_baseline(self, sampler: Child) -> None:
        config = self.assignment.config.baseline
        if not self._takes_baselines:
            return
        known = self._baselines.find(self._devices, self.assignment.config.energy, ttl_s=config.ttl_s)
        if known is not None:
            sampler.send(known)
            return
        taken = await self._baseline(sampler, "idle")
        if taken is not None and taken.stationary:
            self._baselines.keep(
                self._devices, self.assignment.config.energy, taken.parts_w, self.assignment.attempt_id
            )

    async def _baseline(self, sampler: Child, context: BaselineContext) -> BaselineTaken | None:
        config = self.assignment.config.baseline
        if not self._takes_baselines:
            return None
        taken = await self._supervision.baseline(sampler, context, limit_s=config.max_s)
        if config.required and (untold := self._untold(taken)):
            raise broken(
                FailureReason.BACKEND_INITIALISATION,
                f"no source told the power of {untold} to the end of the baseline {context!r}, and baseline.required "
                "is set; mend the source, or set baseline.required to false.",
            )
        return taken

    def _untold(self, taken: BaselineTaken | None) -> str | None:
        """What has no power in a baseline: leased accelerators, or the host where none is leased."""
        accelerators = [device.uuid for device in self._devices if device.kind is not DeviceKind.CPU]
        if taken is None or taken.power_w is None:
            return ", ".join(accelerators) or "the host"
        return ", ".join(uuid for uuid in accelerators if uuid not in taken.parts_w) or None

    @property
    def _takes_baselines(self) -> bool:
        config = self.assignment.config
        return config.baseline.enabled and config.record.power

    def _require_as_requested(self) -> None:
        for effective in self._supervision.effective_configs:
            for parameter in effective.parameters:
                if not parameter.confirmed and parameter.name not in self.assignment.config.allow:
                    raise failed(
                        FailureReason.NOT_AS_REQUESTED,
                        f"{parameter.name} was requested as {parameter.requested!r} and the engine says that "
                        f"{parameter.effective!r} is in force; request what it can do, or allow the difference with "
                        f"allow: [{parameter.name}].",
                    )

    async def _open_window(self, request: StartAttempt) -> None:
        try:
            await self._api.start(self.assignment.attempt_id, request)
        except LeaseLost:
            raise
        except ServerRefused as error:
            if error.problem.code is ProblemCode.CONFLICT:  # a cancel that the next beat would have told
                raise cancelled() from error
            raise

    async def _sampler_marker(self, sampler: Child) -> ProcessCompletion:
        """The sampler's own marker, or one in its place when it died or hangs: energy is missing then, and the run
        stands."""
        message = await self._supervision.until_sampler_done()
        if message is not None:
            return ProcessCompletion(streams=message.streams, summary=message.summary)
        if self.assignment.config.energy.required:
            raise broken(FailureReason.BACKEND_INITIALISATION, "the sampler died or hangs, and energy.required is set.")
        failure = self._supervision.sampler_failure
        if failure is None:
            await sampler.kill(self._kill_grace_s)
            failure = f"the sampler {await sampler.wait()}"
        sealed = tuple(one for one in spool.sealed_manifests(self._dir) if one.process == SAMPLER)
        return ProcessCompletion(streams=sealed, summary={"failed": failure})

    async def _start_sampler(self) -> Child:
        job = SamplerJob(
            attempt_id=self.assignment.attempt_id,
            config=self.assignment.config,
            spool=str(self._dir),
            devices=self._devices,
        )
        return await self._start(SAMPLER, self._modules.sampler, job, {})

    async def _start_ranks(self, prepared: Prepared) -> list[SupervisedProcess]:
        config = self.assignment.config
        jobs = [self._rank_job(number, prepared) for number in range(config.processes)]
        gpus = [device.uuid for device in self._devices if device.kind is DeviceKind.GPU]
        environment = {
            "TOKENIZERS_PARALLELISM": "false",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            # The leased ones in their order and no other; none where the CPU is what was leased.
            "CUDA_VISIBLE_DEVICES": ",".join(gpus),
        }
        if prepared.is_local:
            # Nothing is to be looked up; without this the hub is asked all the same and waited for.
            environment["HF_HUB_OFFLINE"] = "1"
        if len(jobs) > 1 and backend_spec(config.backend).launch_mode is LaunchMode.ACCELERATE:
            if not gpus:
                environment["ACCELERATE_USE_CPU"] = "true"
            return await self._launch(jobs, environment)
        return [await self._start(rank_name(job.rank), self._modules.rank, job, environment) for job in jobs]

    def _rank_job(self, number: int, prepared: Prepared) -> RankJob:
        config = self.assignment.config
        return RankJob(
            attempt_id=self.assignment.attempt_id,
            rank=number,
            world_size=config.processes,
            config=config,
            model_path=prepared.model.path_or_id,
            model_files=prepared.model.file_digests,
            adapter_path=None if prepared.adapter is None else prepared.adapter.path_or_id,
            assistant_path=None if prepared.assistant is None else prepared.assistant.path_or_id,
            prompts=prepared.prompts,
            arrivals_s=prepared.arrivals_s,
            spool=str(self._dir),
            devices=self._devices,
        )

    async def _launch(self, jobs: Sequence[RankJob], environment: dict[str, str]) -> list[SupervisedProcess]:
        files = [self._dir / f"{rank_name(job.rank)}.job.json" for job in jobs]
        for job, file in zip(jobs, files, strict=True):
            spool.write_model(file, job)
        self._started = True
        try:
            ranks = await self._supervision.until_launched(
                launch(
                    self._modules.rank,
                    files[0],
                    self._ranks,
                    attempt_id=self.assignment.attempt_id,
                    environment=environment,
                )
            )
        except OSError as error:
            raise _not_started("accelerate launch", error) from error
        for rank in ranks:
            self._supervision.follow(rank)
        return list(ranks)

    async def _start(self, name: str, module: str, job: BaseModel, environment: dict[str, str]) -> Child:
        job_file = self._dir / f"{name}.job.json"
        spool.write_model(job_file, job)
        try:
            child = await Child.start(
                name,
                module,
                job_file,
                log_file=self._dir / f"{name}.log",
                attempt_id=self.assignment.attempt_id,
                environment=environment,
            )
        except OSError as error:
            raise _not_started(name, error) from error
        self._started = True
        self._supervision.follow(child)
        return child

    async def _give_up(self, why: AttemptEnded | AttemptLost) -> AttemptEnded | AttemptLost | None:
        """Send what there is and tell the server; an interrupted attempt whose evidence is whole is completed instead.

        Without an answer this waits for the server: it decides whether the attempt is still ours, and until then its
        folder stays.
        """
        if isinstance(why, AttemptEnded) and why.outcome == "interrupted" and self._is_whole():
            unfinished = await self._failure_of(self._uploader.complete(self._processes))
            if unfinished is None:
                spool.remove_attempt(self._dir)
                return None
            why = unfinished
        if isinstance(why, AttemptEnded):
            refused = await self._failure_of(self._uploader.send_pending())
            if isinstance(refused, AttemptEnded):
                logger.error("not all evidence of %s was sent: %s", self.assignment.attempt_id, refused)
            end = await self._failure_of(self._api.end(self.assignment.attempt_id, self._end_of(why)))
            if isinstance(end, AttemptLost):
                why = end
            elif end is not None:
                logger.error("the server refused the end of %s: %s", self.assignment.attempt_id, end)
        if self._refused and isinstance(why, AttemptEnded):
            kept = spool.quarantine(self._dir)
            logger.error("what the server refused is kept in %s; remove it when you have looked at it", kept)
        else:
            spool.remove_attempt(self._dir)
        return why

    def _end_of(self, why: AttemptEnded) -> EndAttempt:
        return EndAttempt(
            outcome=why.outcome,
            reason=why.reason,
            # An engine may print anything, and PostgreSQL's text can't hold U+0000.
            message=str(why).replace("\x00", "\N{REPLACEMENT CHARACTER}")[:4000],
            environment={**snapshot(self._devices, self._supervision.device_facts), **self._given},
            effective_config=self._supervision.effective_config,
        )

    def _is_whole(self) -> bool:
        return spool.is_complete(self._dir, self._processes)

    async def _kill_all(self) -> None:
        """The processes with their groups, and then what left its group and still bears the attempt's name."""
        await self._supervision.kill_all(self._kill_grace_s)
        await kill_leftovers([self.assignment.attempt_id], grace_s=self._kill_grace_s)
        if self._started and not self._memory_is_held:
            held = await self.memory_held(MEMORY_FREE_WITHIN_S)
            if held is not None:
                self._memory_is_held = True
                logger.error("%s", held)


def _not_started(name: str, error: OSError) -> AttemptEnded:
    return broken(
        FailureReason.BACKEND_UNAVAILABLE,
        f"{name} can't be started ({error.strerror}); free space, memory or processes on the worker's machine.",
    )
