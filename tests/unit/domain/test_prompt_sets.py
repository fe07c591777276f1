"""Built-in prompts stay what they are, and prompt files are read or refused with a sentence that helps."""

from __future__ import annotations

import json

import pytest

from lem_domain.prompt_sets import (
    DEFAULT_PROMPT_SET,
    PromptFileError,
    builtin_prompt_sets,
    load_builtin_prompts,
    parse_jsonl_prompts,
    parse_text_prompts,
    prompts_digest,
)

KINDS = {"instruction", "question", "code", "summary", "dialogue"}


def test_the_default_set_is_one_of_the_built_in_ones() -> None:
    assert DEFAULT_PROMPT_SET in builtin_prompt_sets()


@pytest.mark.parametrize("name", builtin_prompt_sets())
def test_the_prompts_of_a_set_are_distinct_and_have_text(name: str) -> None:
    prompts = load_builtin_prompts(name)
    assert len({prompt.id for prompt in prompts}) == len(prompts)
    assert len({prompt.text for prompt in prompts}) == len(prompts)
    assert all(prompt.text == prompt.text.strip() != "" for prompt in prompts)


def test_general_v1_spans_kinds_and_lengths() -> None:
    prompts = load_builtin_prompts("general-v1")
    words = [len(prompt.text.split()) for prompt in prompts]
    assert {prompt.kind for prompt in prompts} == KINDS
    assert min(words) <= 5
    assert max(words) >= 150
    assert any(25 <= count < 90 for count in words)


def test_general_v1_has_not_changed_under_its_name() -> None:
    """Results refer to the set by its name: another content needs another name, not another digest here."""
    texts = [prompt.text for prompt in load_builtin_prompts("general-v1")]
    assert prompts_digest(texts) == "88daa3d125385bab2f6d0c1e726b75d9ff6647b3ea995f7bcd118235834e640a"


def test_an_unknown_set_is_answered_with_the_known_ones() -> None:
    with pytest.raises(PromptFileError, match=r"'general-v0'.*general-v1"):
        load_builtin_prompts("general-v0")


def test_a_text_file_holds_one_prompt_per_line_that_is_not_empty() -> None:
    assert parse_text_prompts("\n  one two \r\n\n\tthree\n   \n") == ("one two", "three")


@pytest.mark.parametrize("text", ["", "\n \n\t\n"])
def test_an_empty_file_is_refused(text: str) -> None:
    with pytest.raises(PromptFileError, match="one per line"):
        parse_text_prompts(text)
    with pytest.raises(PromptFileError, match="one JSON object per line"):
        parse_jsonl_prompts(text)


def test_jsonl_prompts_come_from_the_named_column() -> None:
    text = '{"text": "a", "ask": "one"}\n\n{"ask": "two\\nlines", "text": "b"}\r\n'
    assert parse_jsonl_prompts(text, "ask") == ("one", "two\nlines")
    assert parse_jsonl_prompts(text) == ("a", "b")


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\u0085"])
def test_only_newlines_end_a_line_of_jsonl(separator: str) -> None:
    """JSON allows these inside a string as they are, and `str.splitlines` would cut there."""
    prompt = f"before{separator}after"
    assert parse_jsonl_prompts(json.dumps({"text": prompt}, ensure_ascii=False)) == (prompt,)


@pytest.mark.parametrize(
    ("second_line", "told"),
    [
        ("{", r"line 3 "),
        ("[" * 100_000, r"line 3 "),
        ('["ask"]', r"line 3 "),
        ('"ask"', r"line 3 "),
        ('{"question": "x", "id": 1}', r"line 3 has no column 'ask' \(it has question, id\)"),
        ("{}", r"line 3 has no column 'ask' \(it has none\)"),
        ('{"ask": 7}', r"line 3 has no text in column 'ask'"),
        ('{"ask": null}', r"line 3 has no text in column 'ask'"),
        ('{"ask": "  "}', r"line 3 has no text in column 'ask'"),
    ],
)
def test_a_bad_line_is_named_by_its_number_in_the_file(second_line: str, told: str) -> None:
    with pytest.raises(PromptFileError, match=told):
        parse_jsonl_prompts('{"ask": "fine"}\n\n' + second_line + "\n", "ask")


def test_the_digest_distinguishes_what_joins_to_the_same_text() -> None:
    sets = [["ab", "c"], ["a", "bc"], ["abc"], ["abc", ""], ["c", "ab"], []]
    assert len({prompts_digest(prompts) for prompts in sets}) == len(sets)


def test_the_digest_is_sha256_over_length_prefixed_utf8() -> None:
    # sha256(0000000000000002 c3a9 | 0000000000000001 61), computed apart from this code with `sha256sum`.
    assert prompts_digest(["é", "a"]) == "45b11ad0253c38e70abeff28edba11fdf54f64d5690645d96b6a27cf578fdea8"
