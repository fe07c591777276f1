"""Planning a campaign: what is refused before anything is queued, and what the plan says."""

from __future__ import annotations

from typing import Any

import pytest

from lem_domain.config.campaign import CampaignSpec
from lem_domain.errors import ConfigurationError
from lem_domain.wire.campaigns import CampaignPlan
from lem_server.campaigns import planning
from lem_server.campaigns.queries import ServedBackend

DIGEST = "ab" * 32


def spec(experiment: dict[str, Any] | None = None, **keys: Any) -> CampaignSpec:
    base = {"backend": "simulated", "model": "builtin:tiny-llama", **(experiment or {})}
    return CampaignSpec.model_validate({"name": "a campaign", "experiment": base, **keys})


def refusal(submitted: CampaignSpec, existing: frozenset[str] = frozenset()) -> ConfigurationError:
    with pytest.raises(ConfigurationError) as refused:
        planning.refuse_missing_prompts(planning.expand_campaign(submitted), existing=existing)
    return refused.value


def answer(submitted: CampaignSpec, listed: int | None = None) -> CampaignPlan:
    pieces = planning.plan_json(submitted, planning.expand_campaign(submitted), ("a note",), listed=listed)
    return CampaignPlan.model_validate_json(b"".join(pieces))


@pytest.mark.parametrize("count", [1, 500, 501])
def test_the_answer_is_sent_in_pieces_and_lists_as_much_as_is_asked_for(count: int) -> None:
    submitted = spec(sweep={"decoding.seed": list(range(count))}, execution={"cycles": 2})
    whole = answer(submitted)
    assert (whole.experiment_count, whole.run_count, whole.notes) == (count, 2 * count, ("a note",))
    assert [one.config.decoding.seed for one in whole.experiments] == list(range(count))
    assert [run.position for run in whole.runs] == list(range(2 * count))
    some = answer(submitted, listed=1)
    assert (some.experiment_count, some.run_count) == (count, 2 * count)
    assert (some.experiments, some.runs) == (whole.experiments[:1], whole.runs[:1])
    assert answer(submitted, listed=0).runs == ()


def test_a_problem_is_addressed_within_the_body() -> None:
    error = refusal(spec({"output": {"max_tokens": 0}, "bacth": 1}))
    assert {problem.pointer for problem in error.field_problems} == {
        "/experiment/output/max_tokens",
        "/experiment/bacth",
    }


def test_a_file_of_prompts_is_refused_with_the_way_to_upload_it() -> None:
    error = refusal(spec({"prompts": {"file": "prompts.txt"}}))
    assert "only lemctl reads files; upload" in str(error)
    assert [problem.pointer for problem in error.field_problems] == ["/experiment/prompts/file"]


def test_an_unknown_builtin_set_is_refused_and_the_known_ones_are_named() -> None:
    error = refusal(spec({"prompts": {"builtin": "no-such-set"}}))
    assert "'no-such-set'" in str(error)
    assert "choose one of" in str(error)


def test_a_dataset_that_is_not_held_is_refused() -> None:
    assert DIGEST in str(refusal(spec({"prompts": {"dataset": DIGEST}})))


def test_a_dataset_that_is_held_is_accepted() -> None:
    planned = planning.expand_campaign(spec({"prompts": {"dataset": DIGEST}}))
    assert planning.datasets_of(planned) == {DIGEST}
    planning.refuse_missing_prompts(planned, existing={DIGEST})


def test_every_problem_of_a_sweep_is_reported_once() -> None:
    error = refusal(spec(sweep={"prompts.builtin": ["one", "two"], "output.max_tokens": [1, 2]}))
    assert len(error.field_problems) == 2


def test_what_the_database_cannot_store_is_refused() -> None:
    error = refusal(spec({"model": "a\x00b"}))
    assert "U+0000" in str(error)
    assert [problem.pointer for problem in error.field_problems] == ["/experiment/model"]


def test_the_least_duration_is_the_sum_of_all_windows() -> None:
    submitted = spec(sweep={"window.min_duration_s": [2, 5]}, execution={"cycles": 3})
    view = answer(submitted)
    assert view.minimum_duration_s == 21
    assert [(run.experiment, run.cycle, run.position) for run in view.runs[:3]] == [(0, 1, 0), (1, 1, 1), (0, 2, 2)]


DEVICE = {"uuid": "SIM-0", "kind": "simulated", "name": "Simulated"}
GPU = {"uuid": "GPU-0", "kind": "gpu", "name": "NVIDIA H100"}
TORCH = {"torch": "2.13.0"}


@pytest.mark.parametrize(
    ("served", "words"),
    [
        ([], ["No registered worker serves backend 'simulated'", "can run 0 of the 2 runs"]),
        ([ServedBackend("simulated", [DEVICE], {})], ["need 2 devices", "can run 0 of the 2 runs"]),
        ([ServedBackend("simulated", [DEVICE, DEVICE], {})], ["can run all 2 runs"]),
    ],
)
def test_notes_name_what_no_worker_can_run(served: list[ServedBackend], words: list[str]) -> None:
    planned = planning.expand_campaign(spec({"devices": {"count": 2}}, execution={"cycles": 2}))
    notes = planning.worker_notes(planned, served)
    assert len(notes) == len(words)
    assert all(word in note for word, note in zip(words, notes, strict=True))


def test_notes_report_each_backends_engine_and_devices_and_how_much_can_run() -> None:
    submitted = spec(
        sweep={"backend": ["simulated", "pytorch", "vllm"], "devices.kind": [None, "*A100*"]}, execution={"cycles": 3}
    )
    served = [
        ServedBackend("simulated", [DEVICE], {}),
        ServedBackend("pytorch", [GPU], TORCH),
        ServedBackend("vllm", [GPU], TORCH),
    ]
    assert planning.worker_notes(planning.expand_campaign(submitted), served) == (
        "No registered worker for backend 'simulated' has 1 device of kind '*A100*'; runs that want them wait until "
        "one has.",
        "No registered worker for backend 'pytorch' has 1 device of kind '*A100*'; runs that want them wait until "
        "one has.",
        "No registered worker for backend 'vllm' has its engine; its runs end as backend_unavailable, each with what "
        "to install.",
        "Registered workers can run 6 of the 18 runs.",
    )
