"""Which experiments are compared, what differs between them, and whether they are comparable."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from factories.decisions import ENERGY, RATE, experiment
from lem_domain.wire.decisions import ComparedPair
from lem_server.decisions.answers import compare
from lem_server.decisions.differences import are_paired, comparability, differences
from lem_server.decisions.facts import ExperimentFacts, WorkFacts
from lem_server.decisions.matching import Matched, match_campaigns, match_first, match_named, without
from lem_server.decisions.question import Question

VALUES = (1.0, 1.01, 0.99)
MONDAY = datetime(2026, 11, 30, 12, tzinfo=UTC)


def batch(size: int, number: int, campaign: int = 1, **more: Any) -> ExperimentFacts:
    config = {"backend": "pytorch", "pytorch": {"batch_size": size, "compile": False}}
    return experiment(
        VALUES, number=number, campaign=campaign, config=config, varied={"pytorch.batch_size": size}, **more
    )


def codes(reference: ExperimentFacts, candidate: ExperimentFacts, *intended: str) -> list[str]:
    found = differences(reference, candidate)
    return [one.code.value for one in comparability(reference, candidate, found, intended)]


def names(matched: Matched) -> list[tuple[str, str]]:
    return [(first.display_name[-1], second.display_name[-1]) for first, second in matched.pairs]


def test_campaigns_are_matched_by_configuration() -> None:
    matched = match_campaigns([batch(1, 1), batch(8, 2)], [batch(8, 3, 2), batch(1, 4, 2), batch(16, 5, 2)], ())
    assert names(matched) == [("1", "4"), ("2", "3")]
    assert [one.display_name for one in matched.candidate] == ["experiment 5"]
    assert matched.reference == ()


def test_named_keys_may_differ() -> None:
    matched = match_campaigns([batch(1, 1)], [batch(8, 2, 2)], ["pytorch.batch_size"])
    assert names(matched) == [("1", "2")]
    assert names(match_campaigns([batch(1, 1)], [batch(8, 2, 2)], ["pytorch"])) == [("1", "2")]


def test_what_a_named_key_makes_equal_is_listed_and_not_guessed() -> None:
    matched = match_campaigns([batch(1, 1), batch(8, 2)], [batch(1, 3, 2)], ["pytorch.batch_size"])
    assert matched.pairs == ()
    assert [one.display_name for one in (*matched.reference, *matched.candidate)] == [
        "experiment 1",
        "experiment 2",
        "experiment 3",
    ]


def test_the_first_of_a_campaign_is_compared_with_all_others() -> None:
    assert names(match_first([batch(1, 1), batch(2, 2), batch(4, 3)])) == [("1", "2"), ("1", "3")]


def test_named_pairs_are_taken_as_they_are() -> None:
    reference, candidate = [batch(1, 1), batch(2, 2)], [batch(8, 3, 2)]
    pair = ComparedPair(reference=reference[1].experiment_id, candidate=candidate[0].experiment_id)
    matched = match_named(reference, candidate, [pair])
    assert names(matched) == [("2", "3")]
    assert [one.display_name for one in matched.reference] == ["experiment 1"]
    with pytest.raises(KeyError):
        match_named(candidate, reference, [pair])


def test_keys_are_removed_at_any_depth() -> None:
    values = {"a": {"b": 1, "c": {"d": 2}}, "e": 3}
    assert without(values, ["a.c.d", "e", "missing.key"]) == {"a": {"b": 1, "c": {}}}
    assert values["a"] == {"b": 1, "c": {"d": 2}}


def test_every_difference_has_its_part_and_path() -> None:
    first = batch(1, 1, effective={"pytorch.batch_size": 1}, environment={"kernel": "a", "clock": {"utc": "x"}})
    second = batch(8, 2, effective={"pytorch.batch_size": 8}, environment={"kernel": "b", "clock": {"utc": "y"}})
    found = [(one.part, one.path, one.reference, one.candidate) for one in differences(first, second)]
    assert found == [
        ("requested", "pytorch.batch_size", 1, 8),
        ("effective", "pytorch.batch_size", 1, 8),
        ("environment", "kernel", "a", "b"),
    ]


def test_only_what_was_not_varied_is_more_than_intended() -> None:
    first, second = batch(1, 1, environment={"kernel": "a"}), batch(8, 2, environment={"kernel": "a"})
    assert codes(first, second, "pytorch.batch_size") == []
    assert codes(first, second) == ["more_than_intended"]
    assert codes(first, batch(8, 2, environment={"kernel": "b"}), "pytorch") == ["more_than_intended"]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (WorkFacts(prompts="a"), WorkFacts(prompts="b")),
        (WorkFacts(model="a"), WorkFacts(model="b")),
        (WorkFacts(tokens_per_request=100), WorkFacts(tokens_per_request=100.2)),
        (WorkFacts(perplexity=10), WorkFacts(perplexity=10.1)),
    ],
)
def test_other_work_is_found(first: WorkFacts, second: WorkFacts) -> None:
    assert codes(batch(1, 1, work=first), batch(1, 2, work=second)) == ["different_work"]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (WorkFacts(prompts="a"), WorkFacts()),
        (WorkFacts(tokens_per_request=100), WorkFacts(tokens_per_request=100.05)),
        (WorkFacts(perplexity=10), WorkFacts(perplexity=10.04)),
        (WorkFacts(perplexity=10), WorkFacts(perplexity=9)),
    ],
)
def test_equal_or_unknown_work_is_not_found(first: WorkFacts, second: WorkFacts) -> None:
    assert codes(batch(1, 1, work=first), batch(1, 2, work=second)) == []


def test_other_devices_and_days_are_found() -> None:
    assert codes(batch(1, 1), batch(1, 2, sensors=("GPU-2",))) == ["different_device"]
    monday, tuesday = batch(1, 1, started_at=MONDAY), batch(1, 2, started_at=MONDAY + timedelta(days=1))
    assert codes(monday, tuesday) == ["different_time"]
    assert codes(monday, monday) == []


def test_invalid_and_questionable_cycles_are_named() -> None:
    assert codes(batch(1, 1, verdicts=("valid", "invalid", "questionable")), batch(1, 2)) == [
        "excluded_cycles",
        "questionable_cycles",
    ]


def test_pairs_are_cycles_of_one_campaign_on_the_same_devices() -> None:
    assert are_paired(batch(1, 1), batch(8, 2))
    assert not are_paired(batch(1, 1), batch(1, 2, campaign=2))
    assert not are_paired(batch(1, 1), batch(8, 2, devices=("GPU-2",)))


def test_other_work_gives_no_word_unless_it_is_allowed() -> None:
    first, second = batch(1, 1, work=WorkFacts(prompts="a")), batch(1, 2, work=WorkFacts(prompts="b"))
    question = Question(Matched(((first, second),)), (ENERGY,))
    (refused,) = compare(question).comparisons[0].metrics
    assert refused.word == "not_comparable"
    assert "prompts" in (refused.reason or "")
    (allowed,) = compare(question._replace(allow_different_work=True)).comparisons[0].metrics
    assert allowed.word == "no_difference_shown"


def test_an_answer_counts_its_tests_and_names_unknown_sensors() -> None:
    question = Question(Matched(((batch(1, 1), batch(8, 2)), (batch(1, 1), batch(9, 3)))), (ENERGY, RATE))
    answer = compare(question)
    assert answer.tests == 2
    first = answer.comparisons[0]
    assert [one.word for one in first.metrics] == ["no_difference_shown", "not_comparable"]
    assert [one.code for one in first.findings] == ["sensor_unknown"]
    assert (first.reference.cycles, first.candidate.cycles) == ((1, 2, 3), (1, 2, 3))


def test_a_varied_backend_varies_the_sections_of_both() -> None:
    pair = [
        experiment(VALUES, number=number, config={"backend": name, name: {"x": 1}}, varied={"backend": name})
        for number, name in ((1, "pytorch"), (2, "vllm"))
    ]
    assert (
        compare(Question(Matched(((pair[0], pair[1]),)), (ENERGY,))).comparisons[0].findings[0].code == "sensor_unknown"
    )


def test_differences_in_force_are_those_of_the_first_usable_cycles() -> None:
    first = batch(1, 1, environment={"kernel": "a"})
    bad, one, last = first.cycles
    cycles = (bad._replace(environment={"kernel": "b"}, verdict="invalid"), one, last._replace(environment={}))
    changed = first._replace(cycles=cycles)
    assert differences(first, changed) == differences(changed, first) == ()
    none = first._replace(cycles=())
    assert differences(first, none) == differences(none, first) == ()


def test_eight_differences_are_shown_and_the_others_counted() -> None:
    for count, end in ((8, "key7. A"), (9, "key7 and 1 more. A"), (11, "key7 and 3 more. A")):
        first, second = (
            experiment(VALUES, number=number, config={f"key{index}": number for index in range(count)})
            for number in (1, 2)
        )
        (found,) = comparability(first, second, differences(first, second), ())
        assert end in found.message


def test_cycles_of_one_side_alone_are_no_pairs_to_compare() -> None:
    first = batch(1, 1)
    assert are_paired(first, first._replace(cycles=first.cycles[:2]))
    assert are_paired(first._replace(cycles=first.cycles[1:]), first)


def test_the_figures_of_other_work_are_shown() -> None:
    """The mean of the tokens; the lowest perplexity of the candidate and the highest of the reference."""

    def message(first: list[WorkFacts], second: list[WorkFacts]) -> str:
        sides = [
            one._replace(cycles=tuple(cycle._replace(work=work) for cycle, work in zip(one.cycles, works, strict=True)))
            for one, works in ((batch(1, 1), first), (batch(1, 2), second))
        ]
        (found,) = comparability(sides[0], sides[1], (), ())
        return found.message

    tokens = [[WorkFacts(tokens_per_request=each) for each in side] for side in ((99, 100, 101), (110, 111, 112))]
    assert message(*tokens).startswith("They generated 100 and 111 tokens per request")
    quality = [[WorkFacts(perplexity=each) for each in side] for side in ((8, 9, 10), (13, 12, 11))]
    assert message(*quality).startswith("The candidate's perplexity is 11, the reference's 10")


def test_the_order_of_keys_makes_no_other_configuration() -> None:
    one, other = ({"a": 1, "b": 2}, {"b": 2, "a": 1})
    matched = match_campaigns([experiment(VALUES, config=one)], [experiment(VALUES, number=2, config=other)], ())
    assert names(matched) == [("1", "2")]


def test_the_reason_says_whether_there_is_no_partner_or_too_many() -> None:
    lone = match_campaigns([batch(1, 1)], [batch(8, 2)], ())
    many = match_campaigns([batch(1, 1), batch(8, 2)], [batch(4, 3)], ["pytorch.batch_size"])
    for found, words in ((lone, "no experiment"), (many, "2 experiments of one campaign")):
        assert all(words in one.reason for one in (*found.reference, *found.candidate))


def test_the_answer_names_cycles_by_their_verdicts() -> None:
    first = batch(1, 1, verdicts=("valid", "invalid", "questionable"))
    shown = compare(Question(Matched(((first, batch(8, 2)),)), (ENERGY,))).comparisons[0].reference
    assert (shown.cycles, shown.excluded_cycles, shown.questionable_cycles) == ((1, 3), (2,), (3,))
