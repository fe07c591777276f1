"""What every backend must do, as tests that each backend's own file inherits.

A backend's file derives a class from `BackendConformance` and gives a fixture `rig`: the jobs that the backend runs in
the test, on the real engine or on a fake one.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import metadata
from pathlib import Path
from typing import Any

import pytest

from factories.one_rank import Window
from lem_domain.backends.registry import BACKENDS, BackendName, backend_spec
from lem_domain.backends.spec import LaunchMode
from lem_domain.config.experiment import ExperimentConfig
from lem_domain.config.measurement import TrafficConfig
from lem_domain.evidence.streams import PhaseName
from lem_domain.states import FailureReason
from lem_worker.backends.create import create_backend
from lem_worker.backends.protocol import ContinuousBackend, LockstepBackend, NotLoaded, ScoringBackend, SyntheticBackend
from lem_worker.process.failures import failure_of
from lem_worker.process.protocol import RankJob
from lem_worker.rank.measured_window import measure
from lem_worker.rank.prompts import PreparedPrompt, PromptRefused, warmup_requests
from lem_worker.rank.recorder import Recorder
from lem_worker.rank.window_length import WindowLength

TEXTS = ("one two three", "four five", "six", "seven eight nine ten")
TOKENS = 4
CONCURRENCY = 2


class Cancelled(Exception):
    """Raised by a progress report, as a lost pipe to the daemon is."""


class CancellingProgress:
    """Raises at the first report."""

    def due_ns(self) -> int:
        return 0

    def report(self, now_ns: int, *, requests_ended: int, generated_tokens: int) -> None:
        raise Cancelled


@dataclass
class Rig:
    """The jobs of a backend under test."""

    job: Callable[..., RankJob]
    """A job with `TEXTS` as prompts and `TOKENS` as output.max_tokens; keywords are further keys of the experiment."""
    broken_job: Callable[[], RankJob]
    """A job whose load must fail."""
    broken_reason: FailureReason


class Loaded:
    """A loaded backend with its prompts."""

    def __init__(self, job: RankJob) -> None:
        self.job = job
        self.backend: Any = create_backend(job.config.backend)
        self.backend.load(job)
        self.prompts: list[PreparedPrompt] = self.backend.prepare(list(enumerate(job.prompts)))
        requests = warmup_requests(self.prompts, seed=0)
        continuous = isinstance(self.backend, ContinuousBackend)
        sample = requests[: self.backend.in_flight()] if continuous else next(self.backend.batches(requests))
        self.effective = self.backend.effective_config(sample)

    def window(
        self,
        prompts: Sequence[PreparedPrompt] | None = None,
        *,
        requests: int = 1,
        recorder: Recorder | None = None,
        traffic: TrafficConfig | None = None,
    ) -> Window:
        """One window of at least so many requests."""
        window = Window()
        measure(
            self.backend,
            self.prompts if prompts is None else prompts,
            recorder or window.recorder,
            length=WindowLength(0, requests),
            seed=0,
            flush_evidence=lambda: None,
            traffic=traffic,
        )
        window.requests.sort(key=lambda row: row["request_id"])
        return window


@contextmanager
def loaded(job: RankJob) -> Iterator[Loaded]:
    """The backend of a job, unloaded at the end."""
    live = Loaded(job)
    try:
        yield live
    finally:
        live.backend.unload()


class BackendConformance:
    """Inherit, set `name` and give the fixture `rig`, of the scope `class`."""

    name: str

    @pytest.fixture(scope="class")
    @classmethod
    def live(cls, rig: Rig) -> Iterator[Loaded]:
        with loaded(rig.job()) as live:
            yield live

    # --- descriptor ---------------------------------------------------------------------------------------------------

    def test_the_descriptor_fits_the_adapter(self) -> None:
        spec, backend = backend_spec(self.name), create_backend(self.name)
        assert BackendName(self.name) == self.name
        assert isinstance(backend, LockstepBackend) != isinstance(backend, ContinuousBackend)
        assert isinstance(backend, ContinuousBackend) is spec.is_continuous
        assert spec.sequences_key in spec.section.model_fields
        assert isinstance(backend, ScoringBackend) is spec.scores_quality
        assert bool(spec.modules) is bool(spec.distributions) is not spec.is_simulated
        assert spec.launch_mode is not LaunchMode.ENGINE_MANAGED or spec.processes(spec.section()) == 1
        assert not spec.install_hint.endswith(".")

    def test_the_descriptor_names_what_exists(self) -> None:
        spec = backend_spec(self.name)
        assert spec.extra in (metadata("llm-energy-measurement").get_all("Provides-Extra") or ())
        assert spec.image is None or (Path(__file__).parents[3] / spec.image).is_file()

    def test_its_section_is_part_of_an_experiment(self) -> None:
        spec = backend_spec(self.name)
        config = ExperimentConfig.model_validate({"backend": self.name, "model": "m", self.name: {}})
        assert config.section(spec.section) == spec.section()
        for other in BACKENDS:
            if other is not spec:
                with pytest.raises(ValueError, match="belongs to another backend"):
                    ExperimentConfig.model_validate({"backend": other.name, "model": "m", self.name: {}})

    # --- loading ------------------------------------------------------------------------------------------------------

    def test_every_requested_key_is_read_back(self, live: Loaded) -> None:
        config = live.job.config
        section = config.section(backend_spec(self.name).section).model_dump(exclude_unset=True)
        names = {parameter.name for parameter in live.effective.parameters}
        for key, value in section.items():
            path = f"{self.name}.{key}"
            assert path in names or (isinstance(value, dict) and {f"{path}.{inner}" for inner in value} <= names)
        assert "output.mode" in names
        assert [one.name for one in live.effective.parameters if not one.confirmed] == []
        assert live.effective.engine

    def test_nothing_works_without_loading(self, rig: Rig) -> None:
        backend = create_backend(self.name)
        with pytest.raises(NotLoaded):
            backend.prepare([(0, "one")])
        backend.unload()

    def test_unloading_releases_the_engine(self, rig: Rig) -> None:
        live = Loaded(rig.job())
        live.backend.unload()
        with pytest.raises(NotLoaded):
            live.backend.prepare([(0, "one")])

    def test_a_failed_load_has_its_reason(self, rig: Rig) -> None:
        backend = create_backend(self.name)
        with pytest.raises(Exception) as caught:
            backend.load(rig.broken_job())
        failure = failure_of(caught.value, PhaseName.LOAD)
        assert failure.reason is rig.broken_reason
        assert failure.message

    # --- prompts ------------------------------------------------------------------------------------------------------

    def test_prompts_keep_their_index_and_their_limit(self, rig: Rig, live: Loaded) -> None:
        assert [prompt.index for prompt in live.prompts] == [0, 1, 2, 3]
        longest = max(len(prompt.token_ids) for prompt in live.prompts)
        for truncate, part in (("left", slice(-2, None)), ("right", slice(0, 2))):
            with loaded(rig.job(input={"max_tokens": 2, "truncate": truncate})) as short:
                assert [one.token_ids for one in short.prompts] == [one.token_ids[part] for one in live.prompts]
        with pytest.raises(PromptRefused, match=str(longest)):
            Loaded(rig.job(input={"max_tokens": longest - 1}))

    def test_synthetic_prompts_have_their_length(self, live: Loaded) -> None:
        if not isinstance(live.backend, SyntheticBackend):
            pytest.skip("the backend makes no prompts")
        made = live.backend.synthesise([(0, 3), (1, 7)], seed=1)
        assert [(one.index, len(one.token_ids)) for one in made] == [(0, 3), (1, 7)]
        assert live.backend.synthesise([(0, 3), (1, 7)], seed=1) == made

    # --- window -------------------------------------------------------------------------------------------------------

    def test_fixed_lengths_are_honoured_and_counted(self, live: Loaded) -> None:
        window = live.window()
        assert [row["prompt_index"] for row in window.requests] == [0, 1, 2, 3]
        assert [row["prompt_tokens"] for row in window.requests] == [len(one.token_ids) for one in live.prompts]
        assert {row["finish_reason"] for row in window.requests} == {"length"}
        assert {row["error"] for row in window.requests} == {None}
        for row in window.requests:
            mine = [token for token in window.tokens if token["request_id"] == row["request_id"]]
            assert row["generated_tokens"] == TOKENS == len(window.outputs[row["prompt_index"]])
            assert [token["index"] for token in mine] == list(range(TOKENS))
            assert (mine[0]["time_ns"], mine[-1]["time_ns"]) == (row["first_token_ns"], row["last_token_ns"])

    def test_times_are_in_order(self, live: Loaded) -> None:
        window = live.window()
        for row in window.requests:
            stations = (row["arrival_ns"], row["scheduled_ns"], row["first_token_ns"], row["last_token_ns"])
            known = [time for time in stations if time is not None]
            assert known == sorted(known)
            times = [token["time_ns"] for token in window.tokens if token["request_id"] == row["request_id"]]
            assert times == sorted(times)

    def test_greedy_decoding_repeats(self, live: Loaded) -> None:
        assert live.window().outputs == live.window().outputs

    def test_whole_repetitions_are_sent(self, live: Loaded) -> None:
        window = live.window(requests=len(TEXTS) + 1)
        assert [row["prompt_index"] for row in window.requests] == [*range(len(TEXTS))] * 2
        assert len({row["request_id"] for row in window.requests}) == 2 * len(TEXTS)

    def test_a_probe_generates_one_token_each(self, live: Loaded) -> None:
        window = live.window([replace(prompt, max_tokens=1) for prompt in live.prompts])
        assert [row["generated_tokens"] for row in window.requests] == [1] * len(TEXTS)

    def test_closed_traffic_bounds_what_is_in_flight(self, live: Loaded) -> None:
        traffic = TrafficConfig(mode="closed", concurrency=CONCURRENCY)
        window = live.window(requests=2 * len(TEXTS), traffic=traffic)
        assert len(window.requests) == 2 * len(TEXTS)
        # A new request arrives when another ends: at the same time the end comes first.
        edges = [(row["arrival_ns"], 1) for row in window.requests] + [
            (row["last_token_ns"], -1) for row in window.requests
        ]
        assert max(itertools.accumulate(change for _, change in sorted(edges))) <= CONCURRENCY

    def test_a_cancelled_window_ends_and_the_engine_unloads(self, rig: Rig) -> None:
        with loaded(rig.job()) as live, pytest.raises(Cancelled):
            live.window(recorder=Recorder(PhaseName.MEASURE, progress=CancellingProgress()))

    def test_facts_give_a_reason_for_what_is_unknown(self, live: Loaded) -> None:
        live.window()
        facts = live.backend.facts()
        json.dumps(facts)
        if backend_spec(self.name).is_simulated:
            return
        assert set(facts["model"]) == {"matmul_parameters", "layers", "attention_width", "dtype"}
        for name in ("peak_device_memory_bytes", "peak_kv_cache_usage"):
            assert (facts[name] is None) is (name in facts["unknown"])

    def test_tokens_become_text(self, live: Loaded) -> None:
        assert isinstance(live.backend.text(live.window().outputs[0]), str)
