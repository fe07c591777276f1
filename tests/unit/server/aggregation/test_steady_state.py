"""The steady state: its span, its figures for a known load, and the reasons for none."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest

from factories.evidence import Evidence, ns
from lem_domain.config.experiment import ExperimentConfig
from lem_domain.results.findings import FindingCode
from lem_domain.results.run import RunResult
from lem_domain.wire.runs import EffectiveConfig, EffectiveParameter
from lem_server.aggregation.result import aggregate

REST_W, SEQUENCE_W = 100.0, 50.0
TOKENS = 40


class Sequence(NamedTuple):
    """One request: taken up at `begin`, then a token a second."""

    begin: float
    tokens: int = TOKENS
    batch: int | None = None

    @property
    def times(self) -> list[float]:
        return [self.begin + 1 + number for number in range(self.tokens)]

    @property
    def end(self) -> float:
        return self.times[-1]


def staggered(slots: int = 4, requests: int = 12) -> list[Sequence]:
    """An engine that fills one slot a second and then replaces every finished request at once."""
    found = [Sequence(float(number)) for number in range(slots)]
    for number in range(slots, requests):
        found.append(Sequence(found[number - slots].end))
    return found


def joules_until(sequences: list[Sequence], t: float) -> float:
    """The exact energy from 10 s before the first request: 100 W, and 50 W for each sequence."""
    worked = sum(max(0.0, min(t, one.end) - one.begin) for one in sequences)
    return REST_W * (t + 10) + SEQUENCE_W * worked


def made(sequences: list[Sequence], *, limit: int | None = 4, tokens: bool = True, **config: Any) -> Evidence:
    parameters = (
        ()
        if limit is None
        else (EffectiveParameter(name="simulated.batch_size", requested=limit, effective=limit, confirmed=True),)
    )
    evidence = Evidence(
        config=ExperimentConfig.model_validate({"backend": "simulated", "model": "m", **config}),
        effective_config=EffectiveConfig(engine="simulated 1", parameters=parameters),
    )
    for number, one in enumerate(sequences):
        evidence.request(
            number,
            0.0 if one.batch is None else one.begin,
            one.times,
            scheduled=one.begin,
            batch=one.batch,
            record_tokens=tokens,
        )
    last = max(one.end for one in sequences)
    evidence.power(
        [0.05 * step - 1 for step in range(int((last + 2) / 0.05))], joules=lambda t: joules_until(sequences, t)
    )
    return evidence


def result_of(evidence: Evidence) -> RunResult:
    stored = evidence.stored()
    return aggregate(stored.inputs, stored.source)


CLOSED: dict[str, Any] = {"traffic": {"mode": "closed", "concurrency": 4}}


@pytest.mark.parametrize("config", [CLOSED, {}], ids=["closed", "offline"])
def test_the_figures_of_a_known_ramp_are_exact_to_their_bound(config: dict[str, Any]) -> None:
    sequences = staggered()
    result = result_of(made(sequences, **config))
    steady = result.steady
    assert (steady.begin_ns, steady.end_ns) == (ns(4), ns(3 * TOKENS)), "four first tokens; then three are left"
    assert steady.target_sequences == 4
    assert steady.mean_sequences.value == pytest.approx(4)
    tokens = sum(4 < time <= 120 for one in sequences for time in one.times)
    assert steady.generated_tokens.value == tokens
    exact = joules_until(sequences, 120) - joules_until(sequences, 4)
    assert steady.energy.bound_j is not None and steady.energy.joules is not None
    assert abs(steady.energy.joules - exact) <= steady.energy.bound_j
    assert steady.energy_per_output_token_j.value == pytest.approx(steady.energy.joules / tokens)
    assert steady.output_rate_tok_s.value == pytest.approx(tokens / 116)
    assert steady.mean_power_w.value == pytest.approx(300, rel=0.01)
    whole = result.efficiency.energy_per_output_token_j.value
    assert whole is not None and steady.energy_per_output_token_j.value is not None
    assert whole > steady.energy_per_output_token_j.value, "ramp and drain cost more per token"


def test_batches_in_lockstep_are_steady_from_the_first_full_one_to_the_last() -> None:
    full = [Sequence(2 + 41 * batch, batch=batch) for batch in range(2) for _ in range(4)]
    result = result_of(made([*full, Sequence(84, batch=2)]))
    assert (result.steady.begin_ns, result.steady.end_ns) == (ns(2), ns(83))
    assert result.steady.generated_tokens.value == 8 * TOKENS
    assert result.steady.mean_sequences.value == pytest.approx(4 * 80 / 81)


def test_several_ranks_are_steady_while_all_of_them_are_full() -> None:
    evidence = made(staggered(2, 6), traffic={"mode": "closed", "concurrency": 4})
    evidence.processes = ("rank-0", "rank-1", "sampler")
    evidence.summaries["rank-1"] = evidence.summaries["rank-0"]
    for number, one in enumerate(staggered(2, 6)):
        late = [time + 5 for time in one.times]
        evidence.request(number, 5.0, late, rank=1, scheduled=one.begin + 5)
    steady = result_of(evidence).steady
    assert (steady.begin_ns, steady.end_ns) == (ns(2 + 5), ns(120))
    assert steady.target_sequences == 4


@pytest.mark.proves("window.steady_min_s", on="server")
@pytest.mark.parametrize(("least_s", "has_figures"), [(116, True), (116.1, False)])
def test_a_shorter_steady_state_has_its_length_and_no_figures(least_s: float, has_figures: bool) -> None:
    steady = result_of(made(staggered(), **CLOSED, window={"steady_min_s": least_s})).steady
    assert steady.duration_s.value == 116
    for value in (steady.energy.joules, steady.energy_per_output_token_j.value, steady.generated_tokens.value):
        assert (value is not None) == has_figures
    assert ("window.steady_min_s" in str(steady.energy.reason)) != has_figures


def test_an_engine_that_was_often_not_full_has_no_steady_figures() -> None:
    with_gaps = [Sequence(100 * turn + number) for turn in range(3) for number in range(4)]
    steady = result_of(made(with_gaps, **CLOSED)).steady
    assert steady.mean_sequences.value is not None and steady.mean_sequences.value < 0.8 * 4
    assert steady.energy.joules is None and "below 80%" in str(steady.energy.reason)


@pytest.mark.parametrize(
    ("sequences", "limit", "config", "word"),
    [
        (staggered(), 4, {"traffic": {"mode": "open", "rate_per_s": 1}}, "open"),
        (staggered(), None, {}, "did not report"),
        (staggered(2, 3), 8, {"traffic": {"mode": "closed", "concurrency": 5}}, "never had 5"),
        ([Sequence(50.0 * number) for number in range(2)], 2, {}, "never had 2"),
    ],
    ids=["open", "limit unknown", "too few requests", "one after the other"],
)
def test_without_a_steady_state_everything_is_null_with_the_reason(
    sequences: list[Sequence], limit: int | None, config: dict[str, Any], word: str
) -> None:
    steady = result_of(made(sequences, limit=limit, **config)).steady
    assert word in str(steady.energy_per_output_token_j.reason)
    assert steady.energy.joules is None and steady.mean_power_w.value is None


def test_without_token_times_there_is_energy_and_no_figure_per_token() -> None:
    steady = result_of(made(staggered(), tokens=False, **CLOSED)).steady
    assert steady.energy.joules is not None
    assert steady.generated_tokens.value is None
    assert "rank-0" in str(steady.energy_per_output_token_j.reason)


def test_the_limit_of_closed_traffic_is_the_engine_s_if_that_is_lower() -> None:
    steady = result_of(made(staggered(), limit=2, **CLOSED)).steady
    assert steady.target_sequences == 2
    assert steady.begin_ns == ns(2)


@pytest.mark.parametrize(("wanted", "found"), [(4, False), (5, False), (6, True)])
def test_a_batch_that_is_not_reached_is_found(wanted: int, found: bool) -> None:
    evidence = made(staggered(), limit=None, traffic={"mode": "closed", "concurrency": wanted})
    findings = [one for one in result_of(evidence).findings if one.code is FindingCode.BATCH_NOT_REACHED]
    assert [one.numbers for one in findings] == ([{"sequences": 4, "target": wanted}] if found else [])


@pytest.mark.parametrize(("mode", "cut", "found"), [("natural", 4, True), ("natural", 3, False), ("fixed", 9, False)])
def test_many_cut_outputs_are_found_in_natural_mode(mode: str, cut: int, found: bool) -> None:
    evidence = made(staggered(2, 10), limit=2, output={"mode": mode})
    (rows,) = [rows for (_, stream), rows in evidence.rows.items() if stream == "requests"]
    rows["finish_reason"][:] = ["length"] * cut + ["stop"] * (10 - cut)
    findings = [one for one in result_of(evidence).findings if one.code is FindingCode.OUTPUTS_CUT]
    assert [one.numbers for one in findings] == ([{"cut": cut, "finished": 10}] if found else [])
