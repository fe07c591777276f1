"""How `lemctl compare` shows a comparison and reads its options."""

from __future__ import annotations

import io

import pytest
import typer
from rich.console import Console

from factories.decisions import ENERGY, RATE, experiment
from lem_client.cli.commands.compare import share_of
from lem_client.cli.commands.gate import limit_of
from lem_client.render.comparison_table import comparison_parts, gate_parts
from lem_domain.wire.decisions import UnmatchedExperiment
from lem_server.decisions.answers import compare, gate
from lem_server.decisions.matching import Matched
from lem_server.decisions.question import Question


def shown(matched: Matched, margin: float | None = None) -> str:
    out = io.StringIO()
    console = Console(file=out, width=300, markup=False)
    for part in comparison_parts(compare(Question(matched, (ENERGY, RATE), margin=margin))):
        console.print(part)
    return out.getvalue()


def test_a_pair_has_its_heading_differences_numbers_and_word() -> None:
    first = experiment([0.100, 0.101, 0.099, 0.100], config={"a": {"b": 1}})
    second = experiment([0.080, 0.081, 0.079, 0.081], number=2, config={"a": {"b": 2}})
    text = shown(Matched(((first, second),)))
    for part in ("experiment 2 against experiment 1", "requested a.b: 1 → 2", "4 pairs", "better", "-19.75 %", "mJ"):
        assert part in text
    assert "has no value" in text


def test_missing_cycles_are_counted_out() -> None:
    pair = experiment([1.0, 1.2, 0.8]), experiment([1.05, 1.15, 0.9], number=2)
    assert "more cycles of each would show a difference of 10 %" in shown(Matched((pair,)), margin=0.1)
    few = experiment([1.0, 1.2]), experiment([1.05, 1.15], number=2)
    assert "it needs 3 pairs of cycles, and there are 2" in shown(Matched((few,)))


def test_what_has_no_partner_is_listed_with_foreign_text_made_harmless() -> None:
    left = UnmatchedExperiment(experiment_id=f"exp_{'1' * 32}", display_name="odd\x1b[31m", reason="no partner")
    text = shown(Matched((), (left,)))
    assert "not compared, of the reference: odd�[31m: no partner" in text


def test_a_gate_has_its_outcome_limit_and_what_would_decide() -> None:
    pair = experiment([1.0, 1.1, 0.9]), experiment([1.0, 1.1, 0.92], number=2)
    out = io.StringIO()
    for part in gate_parts(gate(Question(Matched((pair,)), (ENERGY,), limits=(0.03,)))):
        Console(file=out, width=300, markup=False).print(part)
    assert out.getvalue().startswith("not enough evidence\n")
    assert "3 %" in out.getvalue()
    assert "more cycles of each would decide" in out.getvalue()


def test_an_experiment_without_a_partner_never_passes() -> None:
    pair = experiment([1.0, 1.01, 0.99]), experiment([0.5, 0.51, 0.49], number=2)
    question = Question(Matched((pair,)), (ENERGY,), limits=(0.03,))
    assert gate(question).outcome == "passed"
    left = UnmatchedExperiment(experiment_id=f"exp_{'1' * 32}", display_name="left", reason="no partner")
    assert gate(question._replace(matched=Matched((pair,), (left,)))).outcome == "not_enough_evidence"


def test_a_limit_names_its_metric() -> None:
    assert limit_of("ttft_ms.mean=5%") == ("ttft_ms.mean", 0.05)
    for wrong in ("3%", "=3%", "ttft_ms.mean=", "ttft_ms.mean"):
        with pytest.raises(typer.BadParameter):
            limit_of(wrong)


def test_a_margin_is_a_share() -> None:
    assert share_of("2%") == share_of("0.02") == share_of(" 2 % ") == 0.02
    for wrong in ("0", "100%", "two", "-1%", "2"):
        with pytest.raises(typer.BadParameter):
            share_of(wrong)
