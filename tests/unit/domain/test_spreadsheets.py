"""A spreadsheet shows every text of a CSV file as text, and the text can be restored."""

from __future__ import annotations

import pytest

from lem_domain.spreadsheets import guarded

FORMULAS = [
    "=1",
    "-1+1",
    "+1",
    "@SUM(1)",
    " =1",
    "\n=1",
    "\t=1",
    "\r-1",
    "\u00a0=1",
    "\u200b=1",
    "\ufeff@a",
    "＝1",
    "＋1",
    "－1",
    "＠a",
    "﹦1",
]


@pytest.mark.parametrize("text", [*FORMULAS, "\ta", "\ra", "\na"])
def test_a_text_that_could_be_a_formula_gets_an_apostrophe(text: str) -> None:
    assert guarded(text) == f"'{text}"


@pytest.mark.parametrize("text", ["", "batch_size=1", "a-b", "1-1", " a", "größe ✓", "５", "(=1)"])
def test_other_texts_stay(text: str) -> None:
    assert guarded(text) == text


@pytest.mark.parametrize("text", [*FORMULAS, "'", "'=1", "''a", "plain"])
def test_removing_one_apostrophe_restores_the_text(text: str) -> None:
    assert guarded(text).removeprefix("'") == text
