"""The backend whose truth is known keeps to it."""

import itertools
from collections.abc import Mapping

import pytest
from pydantic.types import JsonValue

from lem_domain.config.experiment import ExperimentConfig
from lem_domain.evidence.streams import PhaseName
from lem_worker.backends.create import create_backend
from lem_worker.backends.protocol import InferenceBackend
from lem_worker.backends.simulated.backend import SimulatedEngineError, generated_ids
from lem_worker.process.protocol import RankJob
from lem_worker.rank.measured_window import measure
from lem_worker.rank.prompts import PreparedPrompt, PromptRefused, share_of
from lem_worker.rank.recorder import Recorder, Sinks
from lem_worker.rank.token_digests import OutputLedger
from lem_worker.rank.window_length import WindowLength

TEXTS = ("one two three", "four five", "six", "seven eight nine ten")


class Kept:
    """Rows and outputs in memory."""

    def __init__(self) -> None:
        self.rows: list[dict[str, object]] = []
        self.ids: dict[int, list[int]] = {}

    def append(self, **columns: object) -> None:
        self.rows.append(columns)

    def extend(self, **columns: object) -> None:
        names, values = columns.keys(), columns.values()
        self.rows += [dict(zip(names, row, strict=True)) for row in zip(*values, strict=True)]  # type: ignore[call-overload]

    def add(self, prompt_index: int, token_ids: object) -> None:
        self.ids[prompt_index] = list(token_ids)  # type: ignore[call-overload]


def job(simulated: Mapping[str, JsonValue], *, rank: int = 0, world_size: int = 1, **config: JsonValue) -> RankJob:
    document = {"backend": "simulated", "model": "m", "output": {"max_tokens": 4}, "simulated": simulated, **config}
    return RankJob(
        attempt_id="a",
        rank=rank,
        world_size=world_size,
        config=ExperimentConfig.model_validate(document),
        model_path="m",
        prompts=TEXTS,
        spool="unused",
        devices=(),
    )


def loaded(task: RankJob) -> tuple[InferenceBackend, list[PreparedPrompt]]:
    backend = create_backend(task.config.backend)
    backend.load(task)
    return backend, backend.prepare(share_of(task.prompts, task.rank, task.world_size))


def measured(task: RankJob, *, requests: int = 1, phase: PhaseName = PhaseName.MEASURE) -> tuple[Kept, Kept, Kept]:
    backend, prompts = loaded(task)
    rows, tokens, outputs = Kept(), Kept(), Kept()
    measure(
        backend,
        prompts,
        Recorder(phase, Sinks(rows, tokens, outputs)),
        length=WindowLength(0, requests),
        seed=0,
        flush_evidence=lambda: None,
    )
    return rows, tokens, outputs


def test_a_prompt_has_as_many_tokens_as_words() -> None:
    rows, _, _ = measured(job({"decode_ms_per_token": 0}))
    assert [row["prompt_tokens"] for row in rows.rows] == [3, 2, 1, 4]


@pytest.mark.proves("simulated.decode_ms_per_token", "simulated.prefill_ms_per_token", on="simulated")
def test_token_times_keep_to_the_configured_steps() -> None:
    rows, tokens, _ = measured(job({"batch_size": 4, "decode_ms_per_token": 3, "prefill_ms_per_token": 0.5}))
    first = [row["time_ns"] for row in tokens.rows if row["request_id"] == 0]
    assert len(first) == 4
    # Deadlines are absolute, so that a step can come early by what the one before was late, but never the whole.
    assert first[-1] - rows.rows[0]["scheduled_ns"] >= (10 * 0.5 + 3 * 3) * 1e6
    assert first[0] - rows.rows[0]["scheduled_ns"] >= 10 * 0.5 * 1e6
    assert all(later > earlier for earlier, later in itertools.pairwise(first))


def test_outputs_are_a_function_of_the_prompt_alone() -> None:
    _, _, one = measured(job({"batch_size": 1, "decode_ms_per_token": 0}))
    _, _, other = measured(job({"batch_size": 3, "decode_ms_per_token": 0, "jitter": 0.5}))
    assert one.ids == other.ids
    assert len({tuple(ids) for ids in one.ids.values()}) == len(TEXTS)


@pytest.mark.proves("output.mode", "output.min_tokens", "output.max_tokens", on="simulated")
def test_natural_mode_ends_between_minimum_and_maximum() -> None:
    config = ExperimentConfig.model_validate(
        {"model": "m", "output": {"mode": "natural", "min_tokens": 3, "max_tokens": 9}}
    )
    lengths = {len(generated_ids((seed,), config.output)) for seed in range(200)}
    assert lengths == set(range(3, 10))
    rows, tokens, _ = measured(
        job({"batch_size": 4, "decode_ms_per_token": 0}, output={"mode": "natural", "max_tokens": 40})
    )
    assert len(tokens.rows) == sum(int(str(row["generated_tokens"])) for row in rows.rows)
    assert {row["finish_reason"] for row in rows.rows} <= {"stop", "length"}
    assert len({row["generated_tokens"] for row in rows.rows}) > 1


@pytest.mark.proves("simulated.jitter", "decoding.seed", on="simulated")
def test_jitter_is_seeded() -> None:
    durations = []
    for seed in (1, 1, 2):
        backend, _ = loaded(job({"jitter": 0.9}, decoding={"seed": seed}))
        durations.append([backend._duration_ns(5.0) for _ in range(50)])  # type: ignore[attr-defined]
    assert durations[0] == durations[1] != durations[2]
    assert all(0.5e6 <= duration <= 9.5e6 for duration in durations[0])
    assert max(durations[0]) > 7e6


@pytest.mark.proves("simulated.load_s", on="simulated")
def test_loading_takes_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr("lem_worker.backends.simulated.backend.time.sleep", slept.append)
    loaded(job({"load_s": 7}))
    assert slept == [7]


@pytest.mark.proves("simulated.num_processes", on="simulated")
def test_ranks_divide_the_prompts() -> None:
    rows = [
        measured(job({"num_processes": 2, "decode_ms_per_token": 0}, rank=rank, world_size=2))[0].rows
        for rank in (0, 1)
    ]
    assert [[row["prompt_index"] for row in part] for part in rows] == [[0, 2], [1, 3]]
    with pytest.raises(PromptRefused, match="4 prompts for 5 processes"):
        share_of(TEXTS, 4, 5)


@pytest.mark.proves("simulated.batch_size", on="simulated")
def test_whole_repetitions_until_the_minimum_holds() -> None:
    rows, _, _ = measured(job({"batch_size": 3, "decode_ms_per_token": 0}), requests=9)
    assert [row["prompt_index"] for row in rows.rows] == [0, 1, 2, 3] * 3
    assert [row["request_id"] for row in rows.rows] == list(range(12))
    assert [row["batch_id"] for row in rows.rows] == [0, 0, 0, 1, 2, 2, 2, 3, 4, 4, 4, 5]


@pytest.mark.proves("window.min_duration_s", "window.min_requests", on="worker")
def test_a_ranks_goal_is_its_share_of_the_requests_and_the_whole_duration() -> None:
    window = ExperimentConfig.model_validate({"model": "m", "window": {"min_duration_s": 2, "min_requests": 10}}).window
    length = WindowLength.of(window, world_size=3)
    assert length == WindowLength(2_000_000_000, 4)
    assert not length.is_met(1_999_999_999, 4)
    assert not length.is_met(2_000_000_000, 3)
    assert length.is_met(2_000_000_000, 4)
    assert length.fraction(1_000_000_000, 6, share=3) == 0.5
    assert length.fraction(9_000_000_000, 3, share=3) == 0.5
    assert WindowLength(0, 1).fraction(5, 3, share=4) == 0.75


@pytest.mark.proves("input.max_tokens", "input.truncate", on="simulated")
@pytest.mark.parametrize(("truncate", "kept"), [("left", ["nine", "ten"]), ("right", ["seven", "eight"])])
def test_long_prompts_are_cut_at_the_asked_side(truncate: str, kept: list[str]) -> None:
    _, prompts = loaded(job({}, input={"max_tokens": 2, "truncate": truncate}))
    whole, expected = loaded(job({}))[0].prepare([(0, " ".join(kept))]), prompts[3].token_ids
    assert whole[0].token_ids == expected


def test_a_long_prompt_is_refused_by_its_number() -> None:
    with pytest.raises(PromptRefused, match=r"prompt 3 has 4 tokens and input.max_tokens is 3; raise"):
        loaded(job({}, input={"max_tokens": 3}))
    with pytest.raises(PromptRefused, match="prompt 0 has no tokens"):
        loaded(job({}))[0].prepare([(0, "  ")])


@pytest.mark.proves("simulated.misreport", on="simulated")
def test_it_reports_what_it_is_asked_to_misreport() -> None:
    honest = loaded(job({"batch_size": 2}))[0].effective_config(())
    liar = loaded(job({"batch_size": 2, "misreport": ["batch_size"]}))[0].effective_config(())
    assert all(parameter.confirmed for parameter in honest.parameters)
    wrong = [parameter for parameter in liar.parameters if not parameter.confirmed]
    assert [(parameter.name, parameter.requested, parameter.effective) for parameter in wrong] == [
        ("simulated.batch_size", 2, 3)
    ]


@pytest.mark.proves("simulated.failed_share", on="simulated")
def test_a_share_of_the_requests_is_given_up_after_the_first_token() -> None:
    rows, tokens, outputs = measured(job({"batch_size": 3, "decode_ms_per_token": 0, "failed_share": 0.25}), requests=8)
    assert [row["request_id"] for row in rows.rows if row["error"] is not None] == [3, 7]
    assert [row["generated_tokens"] for row in rows.rows] == [4, 4, 4, 1] * 2
    assert len(tokens.rows) == 2 * (3 * 4 + 1)
    assert sorted(outputs.ids) == [0, 1, 2]
    everything, _, _ = measured(job({"batch_size": 3, "decode_ms_per_token": 0, "failed_share": 1}))
    assert all("simulated.failed_share" in str(row["error"]) for row in everything.rows)
    warm, _, _ = measured(job({"decode_ms_per_token": 0, "failed_share": 1}), phase=PhaseName.WARMUP)
    assert {row["error"] for row in warm.rows} == {None}


@pytest.mark.proves("simulated.nondeterministic", on="simulated")
def test_answers_change_from_repetition_to_repetition_where_that_is_asked() -> None:
    def repeats(**simulated: JsonValue) -> bool:
        backend, prompts = loaded(job({"decode_ms_per_token": 0, **simulated}))
        rows, ledger = Kept(), OutputLedger(keep_ids=False)
        recorder = Recorder(PhaseName.MEASURE, Sinks(rows, None, ledger))
        measure(backend, prompts, recorder, length=WindowLength(0, 8), seed=0, flush_evidence=lambda: None)
        return ledger.repeats

    assert repeats()
    assert not repeats(nondeterministic=True)


@pytest.mark.proves("simulated.fail.at", "simulated.fail.how", "simulated.fail.process", on="simulated")
@pytest.mark.parametrize(("how", "error"), [("raise", SimulatedEngineError), ("out_of_memory", MemoryError)])
def test_it_fails_in_the_asked_phase_of_the_asked_process_only(how: str, error: type[Exception]) -> None:
    def task(phase: str, rank: int) -> RankJob:
        fail = {"at": phase, "how": how, "process": 1}
        return job({"num_processes": 2, "decode_ms_per_token": 0, "fail": fail}, rank=rank, world_size=2)

    for phase in ("load", "warmup", "measure"):
        measured(task(phase, 0), phase=PhaseName.MEASURE)
    with pytest.raises(error):
        loaded(task("load", 1))
    measured(task("warmup", 1), phase=PhaseName.MEASURE)
    with pytest.raises(error):
        measured(task("warmup", 1), phase=PhaseName.WARMUP)
    with pytest.raises(error):
        measured(task("measure", 1), phase=PhaseName.MEASURE)
