"""`python -m factories.fake_sampler JOB_FILE`: a sampler that takes two samples.

`LEM_TEST_SAMPLER` changes that: `die` ends it after one sample, `hang` before it seals its evidence, `die_opening` and
`hang_opening` before its first sample; with `no_parts` its baselines have a total power and none of a device."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from lem_domain.evidence.streams import SAMPLER, StreamName
from lem_worker.process.children import die_with_parent
from lem_worker.process.control import ControlPipes
from lem_worker.process.protocol import BaselineTaken, Done, SamplerJob, SamplingStarted, Stop, TakeBaseline
from lem_worker.process.spool import EvidenceWriter


def main(job_file: str) -> int:
    """Run the sampler; returns the exit code."""
    die_with_parent()
    if os.environ.get("LEM_TEST_SAMPLER") == "die_opening":
        os.kill(os.getpid(), signal.SIGSEGV)
    if os.environ.get("LEM_TEST_SAMPLER") == "hang_opening":
        hang()
    job = SamplerJob.model_validate_json(Path(job_file).read_bytes())
    control = ControlPipes.from_environment(os.environ)
    writer = EvidenceWriter(Path(job.spool), SAMPLER)

    def sample() -> None:
        for index, _ in enumerate(job.devices):
            writer.stream(StreamName.POWER).append(device_index=index, time_ns=time.monotonic_ns(), power_mw=50_000)

    sample()
    writer.stream(StreamName.POWER).flush()
    control.send(SamplingStarted(sources=()))
    if os.environ.get("LEM_TEST_SAMPLER") == "die":
        return 9
    while not isinstance(message := control.receive(), Stop):
        if isinstance(message, TakeBaseline) and os.environ.get("LEM_TEST_SAMPLER") == "no_parts":
            control.send(BaselineTaken(context=message.context, stationary=True, power_w=50))
    if os.environ.get("LEM_TEST_SAMPLER") == "hang":
        hang()
    sample()
    control.send(Done(streams=writer.seal(), summary={"ticks": 2}))
    return 0


def hang() -> None:
    """Hang and ignore SIGTERM, as in a driver call that does not return."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while True:
        signal.pause()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
