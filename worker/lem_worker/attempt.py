"""Supervises one attempt: starts its processes, follows what they say, keeps the limits, and brings it to its end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from uuid import UUID

from pydantic import BaseModel, ConfigDict
from pydantic.types import JsonValue

from lem_domain.evidence import SAMPLER, rank_name
from lem_domain.ids import AttemptId
from lem_domain.states import FailureReason
from lem_domain.wire.runs import Progress
from lem_domain.wire.workers import Assignment, Device, EndAttempt, ProcessCompletion, StartAttempt
from lem_worker import spool
from lem_worker.ending import AttemptEnded, AttemptLost, failed
from lem_worker.environment import snapshot
from lem_worker.preparation import Prepared, prepare
from lem_worker.process_protocol import Go, RankJob, SamplerJob, Stop
from lem_worker.processes import Child
from lem_worker.server_api import LeaseLost, ServerApi, ServerRefused
from lem_worker.supervision import Supervision
from lem_worker.upload import Uploader

logger = logging.getLogger(__name__)


class Modules(NamedTuple):
    """What is started as rank and as sampler."""

    rank: str = "lem_worker.rank"
    sampler: str = "lem_worker.energy.sampler"


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
    ) -> None:
        self.assignment = assignment
        self._api = api
        self._dir = spool_dir / assignment.attempt_id
        self._cache_dir = cache_dir
        self._devices = devices
        self._kill_grace_s = kill_grace_s
        self._modules = modules
        self._boot_id = boot_id
        config = assignment.config
        self._ranks = tuple(rank_name(rank) for rank in range(config.processes))
        self._processes = (*self._ranks, SAMPLER)
        self._supervision = Supervision(config.limits, self._ranks, on_progress, log_dir=self._dir)
        self._uploader = Uploader(api, assignment.attempt_id, self._dir)

    def stop(self, why: AttemptEnded | AttemptLost) -> None:
        """Bring the attempt to an end from outside: cancelled, interrupted, or its lease lost."""
        self._supervision.stop(why)

    async def run(self) -> AttemptEnded | AttemptLost | None:
        """Measure. None when the attempt is completed, else why it is not; none of its processes lives then."""
        self._dir.mkdir(parents=True, exist_ok=True)
        marker = SpooledAssignment(
            attempt_id=self.assignment.attempt_id, boot_id=self._boot_id, processes=self._processes
        )
        spool.write_model(self._dir / "assignment.json", marker)
        try:
            await self._supervision.guard(self._measure())
        except LeaseLost as error:
            return await self._give_up(AttemptLost(str(error)))
        except (AttemptEnded, AttemptLost) as error:
            return await self._give_up(error)
        except ServerRefused as error:
            return await self._give_up(
                failed(FailureReason.INVALID_EVIDENCE, f"the server refused what was sent: {error}")
            )
        except spool.SpoolError as error:
            return await self._give_up(failed(FailureReason.INFERENCE, str(error)))
        finally:
            await self._kill_all()
        spool.remove(self._dir)
        return None

    async def _measure(self) -> None:
        config = self.assignment.config
        prepared = await prepare(config, self._api, self._cache_dir)
        sampler = await self._start_sampler()
        await self._supervision.until_sampling(sampler)
        ranks = [await self._start_rank(number, prepared) for number in range(config.processes)]
        uploading = asyncio.create_task(self._uploader.run(), name="lem-upload")
        self._supervision.watch(uploading)
        try:
            effective = await self._supervision.until_loaded()
            for parameter in effective.parameters:
                if not parameter.confirmed:
                    raise failed(
                        FailureReason.NOT_AS_REQUESTED,
                        f"{parameter.name} was requested as {parameter.requested!r} and the engine says that "
                        f"{parameter.effective!r} is in force; request what it can do.",
                    )
            await self._supervision.until_ready()
            environment: dict[str, JsonValue] = {**snapshot(self._devices), "model_files": {**prepared.model_files}}
            await self._api.start(
                self.assignment.attempt_id, StartAttempt(environment=environment, effective_config=effective)
            )
            for rank in ranks:
                rank.send(Go())
            for name, message in (await self._supervision.until_done()).items():
                spool.mark_done(self._dir, name, ProcessCompletion(streams=message.streams, summary=message.summary))
            sampler.send(Stop())
            spool.mark_done(self._dir, SAMPLER, await self._sampler_marker(sampler))
        finally:
            uploading.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await uploading
        await self._uploader.complete(self._processes)

    async def _sampler_marker(self, sampler: Child) -> ProcessCompletion:
        """The sampler's own marker, or one in its place when it died: energy is missing then, and the run stands."""
        message = await self._supervision.until_sampler_done()
        if message is not None:
            return ProcessCompletion(streams=message.streams, summary=message.summary)
        if self.assignment.config.energy.required:
            raise failed(FailureReason.BACKEND_INITIALISATION, "the sampler died, and energy.required is set.")
        ended = await sampler.wait()
        return ProcessCompletion(streams=(), summary={"failed": f"the sampler {ended}"})

    async def _start_sampler(self) -> Child:
        job = SamplerJob(
            attempt_id=self.assignment.attempt_id,
            config=self.assignment.config,
            spool=str(self._dir),
            devices=self._devices,
        )
        return await self._start(SAMPLER, self._modules.sampler, job, {})

    async def _start_rank(self, number: int, prepared: Prepared) -> Child:
        config = self.assignment.config
        job = RankJob(
            attempt_id=self.assignment.attempt_id,
            rank=number,
            world_size=config.processes,
            config=config,
            model_path=prepared.model_path,
            prompts=prepared.prompts,
            spool=str(self._dir),
            devices=self._devices,
        )
        environment = {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_DISABLE_TELEMETRY": "1"}
        if prepared.model_is_local:
            # Nothing is to be looked up; without this the hub is asked all the same and waited for.
            environment["HF_HUB_OFFLINE"] = "1"
        return await self._start(rank_name(number), self._modules.rank, job, environment)

    async def _start(self, name: str, module: str, job: BaseModel, environment: dict[str, str]) -> Child:
        job_file = self._dir / f"{name}.job.json"
        spool.write_model(job_file, job)
        child = await Child.start(
            name,
            module,
            job_file,
            log_file=self._dir / f"{name}.log",
            attempt_id=self.assignment.attempt_id,
            environment=environment,
        )
        self._supervision.follow(child)
        return child

    async def _give_up(self, why: AttemptEnded | AttemptLost) -> AttemptEnded | AttemptLost:
        """Kill everything, send what there is, tell the server."""
        await self._kill_all()
        if isinstance(why, AttemptEnded):
            effective = self._supervision.effective_config
            request = EndAttempt(
                outcome=why.outcome,
                reason=why.reason,
                message=str(why)[:4000],
                environment=snapshot(self._devices),
                effective_config=effective,
            )
            try:
                await self._uploader.send_pending()
                await self._api.end(self.assignment.attempt_id, request)
            except LeaseLost as error:
                why = AttemptLost(str(error))
            except ServerRefused as error:
                logger.error("the server refused the end of %s: %s", self.assignment.attempt_id, error)
        spool.remove(self._dir)
        return why

    async def _kill_all(self) -> None:
        await self._supervision.kill_all(self._kill_grace_s)
