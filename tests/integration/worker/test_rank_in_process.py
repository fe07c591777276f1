"""What a rank hands to its engine: warmed up before the window, each prompt once, no padding beyond its batch.

The rank runs in the test's own process, so that every call of the engine can be counted.
"""

from __future__ import annotations

import gc
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest
import torch

from lem_domain.backends.registry import BackendName
from lem_domain.config.experiment import ExperimentConfig
from lem_domain.evidence.codec import decode_chunk
from lem_domain.evidence.streams import PhaseName, StreamName
from lem_worker.backends import torch_device
from lem_worker.backends.create import create_backend
from lem_worker.backends.protocol import InferenceBackend
from lem_worker.backends.pytorch.backend import PyTorchBackend
from lem_worker.backends.simulated.backend import SimulatedBackend
from lem_worker.process.prompt_selection import select_prompts
from lem_worker.process.protocol import ControlMessage, Done, Failed, Finish, Go, RankJob, ToProcess, WarmUp
from lem_worker.process.spool import sealed_chunks
from lem_worker.rank import main as rank_module
from lem_worker.rank.main import Rank
from lem_worker.rank.prompts import Request
from lem_worker.rank.recorder import Recorder

LENGTHS = (2, 40, 3, 38, 4, 36, 5, 34)
"""Of the prompts, in words: every batch of two in this order holds a short one and a long one."""
TEXTS = tuple(" ".join(f"word{place * 100 + number}" for number in range(count)) for place, count in enumerate(LENGTHS))
TOKENS = 4


class Call(NamedTuple):
    """One batch that the engine was given."""

    phase: PhaseName
    requests: tuple[Request, ...]
    positions: int
    """So many places went through the model's embedding, padding included; 0 where there is no model."""


class Watched:
    """An engine of which every batch is noted; its first one in a phase may fail."""

    def __init__(self, real: InferenceBackend, calls: list[Call], fail_in: PhaseName | None) -> None:
        self._real = real
        self._calls = calls
        self._fail_in = fail_in

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def run(self, requests: Sequence[Request], recorder: Recorder) -> None:
        before = Embedded.positions
        first = all(call.phase is not recorder.phase for call in self._calls)
        self._calls.append(Call(recorder.phase, tuple(requests), 0))
        if first and recorder.phase is self._fail_in:
            raise RuntimeError("the engine stumbles once; a second try would succeed.")
        self._real.run(requests, recorder)
        self._calls[-1] = self._calls[-1]._replace(positions=Embedded.positions - before)


class Embedded:
    """Counts the places that any model of this process works on."""

    positions = 0


@pytest.fixture(autouse=True)
def _count_positions(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    embed = torch.nn.Embedding.forward

    def counted(self: torch.nn.Embedding, ids: torch.Tensor) -> torch.Tensor:
        Embedded.positions += ids.numel()
        return embed(self, ids)

    monkeypatch.setattr(torch.nn.Embedding, "forward", counted)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
    gc.unfreeze()


class Control:
    """The daemon's end: it agrees to everything."""

    def __init__(self) -> None:
        self._orders: list[ToProcess] = [WarmUp(), Go(), Finish()]
        self.sent: list[ControlMessage] = []

    def send(self, message: ControlMessage) -> None:
        self.sent.append(message)

    def receive(self, timeout_s: float | None = None) -> ToProcess | None:
        return self._orders.pop(0) if timeout_s is None else None


class Measured(NamedTuple):
    """What became of a rank."""

    code: int
    calls: list[Call]
    control: Control
    job: RankJob

    def of(self, phase: PhaseName) -> list[Call]:
        return [call for call in self.calls if call.phase is phase]

    def rows(self, stream: StreamName) -> list[dict[str, Any]]:
        files = [chunk.path for chunk in sealed_chunks(Path(self.job.spool)) if chunk.stream is stream]
        return [row for file in files for row in decode_chunk(stream, file.read_bytes()).to_pylist()]


@pytest.fixture
def measured(tmp_path: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A rank's whole life with some backend."""

    def run(backend: str, fail_in: PhaseName | None = None, **changes: Any) -> Measured:
        document: dict[str, Any] = {
            "backend": backend,
            "model": "m",
            "output": {"max_tokens": TOKENS},
            "window": {"min_duration_s": 0, "min_requests": 1},
            "warmup": {"min_requests": 3, "window_size": 2, "max_requests": 4},
            backend: {"batch_size": 2},
            **changes,
        }
        config = ExperimentConfig.model_validate(document)
        job = RankJob(
            attempt_id="a",
            rank=0,
            world_size=1,
            config=config,
            model_path=str(tiny_llama),
            prompts=select_prompts(TEXTS, config.prompts, len),
            spool=str(tmp_path / f"spool-{backend}-{config.prompts.order}"),
            devices=(),
        )
        Path(job.spool).mkdir()
        calls: list[Call] = []
        monkeypatch.setattr(
            rank_module, "create_backend", lambda name: Watched(create_backend(BackendName(name)), calls, fail_in)
        )
        control = Control()
        code = Rank(job, control).run()  # type: ignore[arg-type]  # has the methods of the pipes
        return Measured(code, calls, control, job)

    return run


@pytest.mark.parametrize("backend", ["simulated", "pytorch"])
def test_every_engine_is_warm_before_its_window_opens(measured: Any, backend: str) -> None:
    """Kernels are chosen, caches allocated and clocks raised by requests of the window's own shape, before it."""
    found: Measured = measured(backend)
    assert found.code == 0, found.control.sent
    warm = found.of(PhaseName.WARMUP)
    assert 3 <= len(warm) <= 4
    assert found.calls[: len(warm)] == warm
    largest = max(found.of(PhaseName.MEASURE), key=lambda call: max(len(one.token_ids) for one in call.requests))
    for call in warm:
        assert sorted(len(one.token_ids) for one in call.requests) == sorted(
            len(one.token_ids) for one in largest.requests
        )


@pytest.mark.parametrize("backend", ["simulated", "pytorch"])
def test_nothing_of_the_warm_up_is_measured(measured: Any, backend: str) -> None:
    """Neither its requests nor its tokens are counted, its time lies before the window, its prompts are others."""
    found: Measured = measured(backend)
    requests = found.rows(StreamName.REQUESTS)
    assert sorted(row["prompt_index"] for row in requests) == list(range(len(TEXTS)))
    assert len(found.rows(StreamName.TOKENS)) == len(TEXTS) * TOKENS
    marks = {(row["phase"], row["edge"]): row["time_ns"] for row in found.rows(StreamName.PHASES)}
    assert marks["warmup", "end"] <= marks["measure", "begin"] <= min(row["arrival_ns"] for row in requests)
    measured_starts = {one.token_ids[:2] for call in found.of(PhaseName.MEASURE) for one in call.requests}
    warm_starts = {one.token_ids[:2] for call in found.of(PhaseName.WARMUP) for one in call.requests}
    assert not warm_starts & measured_starts, "a prefix cache would answer for the engine"


def test_a_batch_costs_what_its_longest_prompt_needs_and_no_more(measured: Any) -> None:
    """Padding reaches to the longest prompt of the batch, not to input.max_tokens."""
    found: Measured = measured("pytorch", input={"max_tokens": 512})
    for call in found.of(PhaseName.MEASURE):
        rows, longest = len(call.requests), max(len(one.token_ids) for one in call.requests)
        assert 0 < call.positions <= rows * (longest + TOKENS - 1)
        assert longest < 512


def test_prompts_of_like_length_together_save_padding(measured: Any) -> None:
    def positions(order: str) -> int:
        found: Measured = measured("pytorch", prompts={"order": order})
        assert sum(len(call.requests) for call in found.of(PhaseName.MEASURE)) == len(TEXTS)
        return sum(call.positions for call in found.of(PhaseName.MEASURE))

    mixed, alike = positions("as_is"), positions("longest_first")
    assert alike < 0.8 * mixed


@pytest.mark.parametrize("backend", ["simulated", "pytorch"])
def test_what_fails_in_the_window_is_not_run_a_second_time(measured: Any, backend: str) -> None:
    """A second try under the same open window would cost energy twice and look like one."""
    found: Measured = measured(backend, fail_in=PhaseName.MEASURE)
    assert found.code == 1
    (failed,) = [message for message in found.control.sent if isinstance(message, Failed)]
    assert "stumbles once" in failed.message
    (call,) = found.of(PhaseName.MEASURE)
    requests = found.rows(StreamName.REQUESTS)
    assert len(requests) == len(call.requests)
    assert all(row["generated_tokens"] == 0 and "stumbles once" in row["error"] for row in requests)


@pytest.mark.parametrize("backend", ["simulated", "pytorch"])
def test_warm_up_meets_more_than_the_largest_batch_where_arrivals_make_them(measured: Any, backend: str) -> None:
    found: Measured = measured(
        backend, traffic={"mode": "open", "rate_per_s": 500, "seed": 1}, **{backend: {"batch_size": 6}}
    )
    assert found.code == 0, found.control.sent
    warm = [len(call.requests) for call in found.of(PhaseName.WARMUP)]
    assert warm[:3] == [1, 2, 4]
    assert set(warm[3:]) == {6}


def test_warm_up_meets_the_smaller_batch_at_the_end_of_the_prompts(measured: Any) -> None:
    found: Measured = measured("pytorch", pytorch={"batch_size": 5})
    assert {len(call.requests) for call in found.of(PhaseName.MEASURE)} == {5, 3}
    assert [len(call.requests) for call in found.of(PhaseName.WARMUP)][:2] == [3, 5]


def test_the_peak_of_device_memory_counts_from_the_beginning_of_the_window(
    measured: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What CUDA's counters are told and asked, in their order among the engine's batches."""
    seen: list[str] = []
    run = PyTorchBackend.run

    def noted(self: PyTorchBackend, requests: Sequence[Request], recorder: Recorder) -> None:
        seen.append(recorder.phase.value)
        run(self, requests, recorder)

    monkeypatch.setattr(PyTorchBackend, "run", noted)
    monkeypatch.setattr(torch_device, "reset_peak_memory", lambda _: seen.append("forget"))
    monkeypatch.setattr(torch_device, "peak_memory_bytes", lambda _: seen.append("read"))
    measured("pytorch", prefill_probe=True)
    order = [step for step, _ in itertools.groupby(seen)]
    assert order == ["warmup", "measure", "forget", "measure", "read", "prefill_probe"]
    assert seen[seen.index("forget") - 2 : seen.index("forget")] == ["warmup", "measure"], "before the first batch"


@pytest.mark.parametrize(
    ("phase", "shows"), [(PhaseName.WARMUP, False), (PhaseName.MEASURE, True), (PhaseName.PREFILL_PROBE, False)]
)
def test_the_peak_of_memory_is_that_of_the_window(
    measured: Any, monkeypatch: pytest.MonkeyPatch, phase: PhaseName, shows: bool
) -> None:
    """What loading, warming up and probing take for a while is not in it."""
    run, much = SimulatedBackend.run, 256 * 2**20

    def greedy(self: SimulatedBackend, requests: Sequence[Request], recorder: Recorder) -> None:
        if recorder.phase is phase:
            bytearray(much)
        run(self, requests, recorder)

    monkeypatch.setattr(SimulatedBackend, "run", greedy)
    before = psutil.Process().memory_info().rss
    found: Measured = measured("simulated", prefill_probe=True)
    (done,) = [message for message in found.control.sent if isinstance(message, Done)]
    peak = done.summary["peak_rss_bytes"]
    assert isinstance(peak, int)
    assert peak > before / 2
    assert (peak > before + 0.8 * much) is shows
    assert done.summary["unknown"] == {}
