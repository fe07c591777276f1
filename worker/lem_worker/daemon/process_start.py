"""Start of the processes of an attempt: job files, environments, and the launch of the ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from lem_domain.backends.registry import backend_spec
from lem_domain.backends.spec import LaunchMode
from lem_domain.evidence.streams import SAMPLER, rank_name
from lem_domain.states import FailureReason
from lem_domain.wire.workers import Assignment, Device, DeviceKind
from lem_worker.daemon.attempt_end import AttemptEnded, machine_failure
from lem_worker.daemon.preparation import Prepared
from lem_worker.daemon.rank_launch import launch_ranks
from lem_worker.daemon.supervision import Supervision
from lem_worker.process import spool
from lem_worker.process.children import Child, SupervisedProcess
from lem_worker.process.protocol import IdlePower, RankJob, SamplerJob


class ProcessModules(NamedTuple):
    """The modules that run as rank and as sampler; tests replace them."""

    rank: str = "lem_worker.rank.main"
    sampler: str = "lem_worker.sampler.main"


@dataclass
class ProcessStarter:
    """Starts the processes of one attempt and lets its supervision follow them.

    Raises:
        AttemptEnded: a process can't be started.
    """

    assignment: Assignment
    modules: ProcessModules
    attempt_dir: Path
    devices: tuple[Device, ...]
    supervision: Supervision
    idle_power: tuple[IdlePower, ...] = ()
    """Of all of the worker's GPUs."""
    started: bool = False
    """Whether any process was started, which may have used the devices."""

    async def start_sampler(self) -> Child:
        """Start the sampler."""
        job = SamplerJob(
            attempt_id=self.assignment.attempt_id,
            config=self.assignment.config,
            spool=str(self.attempt_dir),
            devices=self.devices,
            idle_power=self.idle_power,
        )
        return await self._start(SAMPLER, self.modules.sampler, job, {})

    async def start_ranks(self, prepared: Prepared) -> list[SupervisedProcess]:
        """Start all ranks, in the way that the backend needs."""
        jobs = [self._rank_job(number, prepared) for number in range(self.assignment.config.processes)]
        gpus = [device.uuid for device in self.devices if device.kind is DeviceKind.GPU]
        environment = {
            # Tokenizers warn, and may deadlock, when a process forks after they have used threads.
            "TOKENIZERS_PARALLELISM": "false",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            # The leased GPUs in their order and no others; empty where the CPU is leased.
            "CUDA_VISIBLE_DEVICES": ",".join(gpus),
        }
        if prepared.is_local:
            # Without it the library contacts the hub even for local files, and waits for it.
            environment["HF_HUB_OFFLINE"] = "1"
        if len(jobs) > 1 and backend_spec(self.assignment.config.backend).launch_mode is LaunchMode.ACCELERATE:
            if not gpus:
                environment["ACCELERATE_USE_CPU"] = "true"
            return await self._launch(jobs, environment)
        return [await self._start(rank_name(job.rank), self.modules.rank, job, environment) for job in jobs]

    def _rank_job(self, number: int, prepared: Prepared) -> RankJob:
        return RankJob(
            attempt_id=self.assignment.attempt_id,
            rank=number,
            world_size=self.assignment.config.processes,
            config=self.assignment.config,
            model_path=prepared.model.path_or_id,
            model_files=prepared.model.file_digests,
            adapter_path=None if prepared.adapter is None else prepared.adapter.path_or_id,
            assistant_path=None if prepared.assistant is None else prepared.assistant.path_or_id,
            prompts=prepared.prompts,
            arrivals_s=prepared.arrivals_s,
            spool=str(self.attempt_dir),
            devices=self.devices,
        )

    async def _launch(self, jobs: Sequence[RankJob], environment: dict[str, str]) -> list[SupervisedProcess]:
        names = [rank_name(job.rank) for job in jobs]
        files = [self._write_job(name, job) for name, job in zip(names, jobs, strict=True)]
        self.started = True
        launching = launch_ranks(
            self.modules.rank, files[0], names, attempt_id=self.assignment.attempt_id, environment=environment
        )
        try:
            ranks = await self.supervision.while_loading(launching, "starting the ranks")
        except OSError as error:
            raise _not_started("accelerate launch", error) from error
        for rank in ranks:
            self.supervision.follow(rank)
        return list(ranks)

    async def _start(self, name: str, module: str, job: RankJob | SamplerJob, environment: dict[str, str]) -> Child:
        job_file = self._write_job(name, job)
        try:
            child = await Child.start(
                name,
                module,
                job_file,
                log_file=self.attempt_dir / f"{name}.log",
                attempt_id=self.assignment.attempt_id,
                environment=environment,
            )
        except OSError as error:
            raise _not_started(name, error) from error
        self.started = True
        self.supervision.follow(child)
        return child

    def _write_job(self, name: str, job: RankJob | SamplerJob) -> Path:
        path = self.attempt_dir / f"{name}.job.json"
        spool.write_model(path, job)
        return path


def _not_started(name: str, error: OSError) -> AttemptEnded:
    return machine_failure(
        FailureReason.BACKEND_UNAVAILABLE,
        f"{name} can't be started ({error.strerror}); free space, memory or processes on the worker's machine.",
    )
