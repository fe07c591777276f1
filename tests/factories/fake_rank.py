"""`python -m factories.fake_rank JOB_FILE`: a rank that behaves as `LEM_TEST_RANK` names, over the real protocol.

`as_told`: the behaviour that the configuration's model names. `gated`: the real rank, which creates the file
`LEM_TEST_REACHED` at the point `LEM_TEST_GATE` and waits until the file is removed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from lem_domain.evidence.streams import PhaseName, StreamManifest, StreamName, rank_name
from lem_domain.states import FailureReason
from lem_domain.wire.runs import EffectiveConfig, EffectiveParameter
from lem_worker.backends.simulated.backend import SimulatedBackend
from lem_worker.process.children import die_with_parent
from lem_worker.process.control import ControlPipes
from lem_worker.process.protocol import Done, Failed, Go, Loaded, PhaseEdge, RankJob, Ready, Tick
from lem_worker.process.spool import EvidenceWriter
from lem_worker.rank import main as rank
from lem_worker.rank.prompts import Request
from lem_worker.rank.recorder import Recorder

REQUESTS = 4


def main(job_file: str) -> int:
    """Run the rank; returns the exit code."""
    die_with_parent()
    job = RankJob.model_validate_json(Path(job_file).read_bytes())
    act = os.environ.get("LEM_TEST_RANK", "measure")
    if act == "gated":
        put_gate(os.environ["LEM_TEST_GATE"])
        return rank.main([job_file])
    if act == "as_told":
        act = job.model_path
    control = ControlPipes.from_environment(os.environ)
    writer = EvidenceWriter(Path(job.spool), rank_name(job.rank))

    def mark(phase: PhaseName, edge: str) -> None:
        now = time.monotonic_ns()
        writer.stream(StreamName.PHASES).append(phase=phase.value, edge=edge, time_ns=now)
        control.send(PhaseEdge(phase=phase, edge=edge, time_ns=now))  # type: ignore[arg-type]

    print(f"{rank_name(job.rank)} loads {job.model_path}", flush=True)  # noqa: T201
    mark(PhaseName.LOAD, "begin")
    if act == "die_loading":
        os.kill(os.getpid(), signal.SIGSEGV)
    if act == "fail_loading":
        control.send(Failed(reason=FailureReason.OUT_OF_MEMORY, message="the model needs 9 GB"))
        return 1
    if act == "long_prompt":
        control.send(Failed(reason=FailureReason.BACKEND_INITIALISATION, message="prompt 3 has too many tokens"))
        return 1
    if act == "babble":
        os.write(int(os.environ["LEM_CONTROL_OUT"]), b"hello\n")
        signal.pause()
    mark(PhaseName.LOAD, "end")
    parameter = EffectiveParameter(
        name="simulated.batch_size", requested=8, effective=4, confirmed=not (act == "disobey" and job.rank == 1)
    )
    control.send(Loaded(effective_config=EffectiveConfig(engine="fake 1", parameters=(parameter,))))
    control.send(Ready())
    while not isinstance(control.receive(), Go):
        pass
    mark(PhaseName.MEASURE, "begin")
    stream = writer.stream(StreamName.REQUESTS)
    for number in range(REQUESTS):
        stream.append(
            request_id=number,
            prompt_index=number,
            arrival_ns=time.monotonic_ns(),
            prompt_tokens=1,
            generated_tokens=2,
            finish_reason="length",
        )
    stream.flush()
    control.send(Tick(phase=PhaseName.MEASURE, requests_ended=REQUESTS, generated_tokens=2 * REQUESTS, fraction=1.0))
    if act == "die_measuring":
        print("last words", flush=True)  # noqa: T201
        os._exit(3)
    if act == "hang":
        hang(control)
    mark(PhaseName.MEASURE, "end")
    if act == "leave_child":
        leave_child()
    control.send(Done(streams=writer.seal(), summary={"requests": REQUESTS}))
    return 0


def put_gate(point: str) -> None:
    """Make the rank wait once at `point`: `load`, `warmup`, `measure` or `sealing` (after the window)."""
    file = Path(os.environ["LEM_TEST_REACHED"])
    left = [point]

    def gate(here: str) -> None:
        if here in left:
            left.remove(here)
            file.touch()
            while file.exists():
                time.sleep(0.01)

    load, run, seal = SimulatedBackend.load, SimulatedBackend.run, EvidenceWriter.seal

    def gated_load(backend: SimulatedBackend, job: RankJob) -> None:
        gate("load")
        load(backend, job)

    def gated_run(backend: SimulatedBackend, requests: Sequence[Request], recorder: Recorder) -> None:
        gate(recorder.phase.value)
        run(backend, requests, recorder)

    def gated_seal(writer: EvidenceWriter) -> tuple[StreamManifest, ...]:
        gate("sealing")
        return seal(writer)

    SimulatedBackend.load = gated_load  # type: ignore[method-assign]
    SimulatedBackend.run = gated_run  # type: ignore[method-assign]
    EvidenceWriter.seal = gated_seal  # type: ignore[method-assign]


def leave_child() -> None:
    """Leave a child that is outside the group and the session, has no parent and ignores SIGTERM."""
    deaf, up = os.pipe()
    if os.fork() == 0:
        os.setsid()
        if os.fork():
            os._exit(0)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.write(up, b".")
        while True:
            signal.pause()
    os.wait()
    os.read(deaf, 1)


def hang(control: ControlPipes) -> None:
    """Hang and ignore SIGTERM, with a child outside the group that does the same."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    deaf = "import os, signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); os.write(1, b'.'); signal.pause()"
    child = subprocess.Popen([sys.executable, "-c", deaf], stdout=subprocess.PIPE, start_new_session=True)
    assert child.stdout is not None
    child.stdout.read(1)
    control.send(Tick(phase=PhaseName.MEASURE, requests_ended=REQUESTS, fraction=0.5))
    while True:
        signal.pause()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
