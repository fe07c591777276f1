"""Names of others in Markdown are text, by a parser of Markdown and by the patterns of mentions and links."""

from __future__ import annotations

import re

import pytest
from markdown_it import MarkdownIt

from factories.results import campaign_results
from lem_client.render.formats.markdown import render
from lem_client.render.markdown_text import as_text

HOSTILE = [
    "@org/team",
    "#1",
    "org/repo#12",
    "[x](http://e)",
    "![x](http://e/y.png)",
    "[x][y]",
    "`code`",
    "a`b",
    "a|b",
    r"a\|b",
    "a\\",
    "<b>bold</b>",
    "<!-- hidden",
    "&lt;script&gt;",
    "*a* _b_ **c** __d__ ~~e~~",
    "http://example.org/x",
    "WWW.example.org",
    "me@example.org",
    "<http://e>",
    "$x$",
    "- item",
    "1. item",
    "# heading",
    "> quote",
    "===",
    "batch_size=8, a_b_c",
]
MARKDOWN = MarkdownIt("commonmark").enable(["table", "strikethrough"])


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("around", ["{}", "### {}", "- {}", "| head |\n| --- |\n| {} |"])
def test_a_name_is_shown_as_text(name: str, around: str) -> None:
    source = around.format(as_text(name))
    inline = [token for token in MARKDOWN.parse(source) if token.type == "inline"][-1]
    assert {child.type for child in inline.children or ()} <= {"text", "text_special"}
    shown = "".join(child.content for child in inline.children or ())
    assert shown.replace("\u200b", "") == name
    assert not re.search(r"@\w|#\d", shown)
    assert not re.search(r"https?://|www\.\w", source, re.IGNORECASE)
    if "head" in around:
        assert sum(token.type == "td_open" for token in MARKDOWN.parse(source)) == 1


def test_lines_and_control_characters_become_spaces() -> None:
    assert as_text("a\n\n# b\x1b[0m") == "a #&#8203; b�\\[0m"


def test_results_have_one_cell_per_column_whatever_the_names() -> None:
    for name in HOSTILE:
        source = render(campaign_results(display_name=name, findings=(f"{name} is slow",)))
        tokens = MARKDOWN.parse(source)
        assert {token.type for token in tokens} <= {
            *(
                f"{kind}_{edge}"
                for kind in ("heading", "table", "thead", "tbody", "tr", "th", "td")
                for edge in ("open", "close")
            ),
            *(f"{kind}_{edge}" for kind in ("bullet_list", "list_item", "paragraph") for edge in ("open", "close")),
            "inline",
        }
        cells = sum(token.type == "td_open" for token in tokens)
        assert cells == sum(token.type == "th_open" for token in tokens)
