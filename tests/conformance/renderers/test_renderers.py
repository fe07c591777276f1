"""What every format of results does: missing figures, long names, and text that must not be executed or break it."""

from __future__ import annotations

import pytest
from rich.console import Console

from factories.results import campaign_results, summary
from lem_client.render.formats import format_names, renderer
from lem_domain.wire.campaigns import CampaignResults

LONG = "llama-3.3-70b-instruct, " * 20 + "batch_size=128"
UNICODE = "größe=8 ✓ 模型 🔋"

every = pytest.mark.parametrize("name", format_names())


def text_of(name: str, results: CampaignResults) -> str:
    """The output of a format, on a terminal that is wide enough for every cell."""
    rendered = renderer(name)(results)
    if isinstance(rendered, str):
        return rendered
    console = Console(width=4000, force_terminal=False, markup=False, highlight=False, emoji=False)
    with console.capture() as captured:
        console.print(rendered)
    return captured.get()


def test_the_formats_are_those_that_the_documentation_names() -> None:
    assert format_names() == ("csv", "json", "markdown", "table")


@every
def test_a_missing_figure_has_its_reason_and_is_never_zero(name: str) -> None:
    metrics = (summary("efficiency.energy_per_output_token_j", "J", reason="no source of energy"),)
    text = text_of(name, campaign_results(metrics=metrics))
    assert "no source of energy" in text
    assert "0.0" not in text.replace("0.0.0", "")


@every
def test_results_without_any_figure_are_shown(name: str) -> None:
    text = text_of(name, campaign_results(verdict=None, energy_method=None, metrics=(), findings=()))
    assert text.endswith("\n")


@every
@pytest.mark.parametrize("display_name", [LONG, UNICODE])
def test_long_names_and_any_script_are_written_whole(name: str, display_name: str) -> None:
    assert display_name in text_of(name, campaign_results(display_name=display_name))


@every
def test_control_characters_do_not_reach_the_output(name: str) -> None:
    assert "\x1b" not in text_of(name, campaign_results(display_name="a\x1b[31mb", findings=("c\x1b[0md",)))


@every
def test_the_same_results_give_the_same_text(name: str) -> None:
    assert text_of(name, campaign_results()) == text_of(name, campaign_results())
