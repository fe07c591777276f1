"""Where values of a TOML text stand: whatever the text, every value has the line that its key is on."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator

from hypothesis import given
from hypothesis import strategies as st

from lem_client.files.toml_lines import toml_lines
from lem_domain.config.validation import pointer

TEXT = '''# of each kind
model = "x # no comment"  # one
"a.b" = 1979-05-27 07:32:00
[sweep]
"simulated.batch_size" = [
  1, # ] no end
  8,
]
zip = [
  {"output.max_tokens" = [1, 2], x.y = """a
"b\\""""" },
]
[[experiments]]
name = 'a\\'
[experiments.output]
max_tokens = 3

[[experiments]]
output.max_tokens = \'\'\'
4\'\'\'
last = inf
'''


def places(value: object, place: tuple[str | int, ...] = ()) -> Iterator[str]:
    if place:
        yield pointer(place)
    if isinstance(value, dict):
        members: list[tuple[str | int, object]] = list(value.items())
    else:
        members = list(enumerate(value)) if isinstance(value, list) else []
    for key, inner in members:
        yield from places(inner, (*place, key))


def test_every_kind_of_value_has_its_line() -> None:
    lines = toml_lines(TEXT)
    assert set(lines) == set(places(tomllib.loads(TEXT)))
    assert lines == {
        "/model": 2,
        "/a.b": 3,
        "/sweep": 4,
        "/sweep/simulated.batch_size": 5,
        "/sweep/simulated.batch_size/0": 6,
        "/sweep/simulated.batch_size/1": 7,
        "/sweep/zip": 9,
        "/sweep/zip/0": 10,
        "/sweep/zip/0/output.max_tokens": 10,
        "/sweep/zip/0/output.max_tokens/0": 10,
        "/sweep/zip/0/output.max_tokens/1": 10,
        "/sweep/zip/0/x": 10,
        "/sweep/zip/0/x/y": 10,
        "/experiments": 13,
        "/experiments/0": 13,
        "/experiments/0/name": 14,
        "/experiments/0/output": 15,
        "/experiments/0/output/max_tokens": 16,
        "/experiments/1": 18,
        "/experiments/1/output": 19,
        "/experiments/1/output/max_tokens": 19,
        "/experiments/1/last": 21,
    }


KEYS = st.sampled_from(["a", '"a"', "b-1", "'c.d'", '"e\\n\\""', "f . g", "''"])
PLAIN = st.sampled_from(
    ["1", "-0.5e3", "true", "inf", '""', '"#"', "''", "'\\'", '"""\n"\n"""', "'''a'b''''", '"""\\""""""', "2020-01-01"]
)
SPACE = st.sampled_from(["", " ", "\n", " # x ]\n", "\r\n\t"])


@st.composite
def arrays(draw: st.DrawFn, values: st.SearchStrategy[str]) -> str:
    listed = draw(st.lists(values, max_size=3))
    inner = ",".join(f"{draw(SPACE)}{value}{draw(SPACE)}" for value in listed)
    comma = draw(st.sampled_from(["", ","])) if listed else ""
    return f"[{inner}{comma}{draw(SPACE)}]"


@st.composite
def inline_tables(draw: st.DrawFn, values: st.SearchStrategy[str]) -> str:
    pairs = draw(st.lists(st.tuples(KEYS, values), max_size=3, unique_by=lambda pair: pair[0][:2].strip("\"'")))
    return "{" + ", ".join(f"{key} = {value}" for key, value in pairs) + " }"


VALUES = st.recursive(PLAIN, lambda inner: arrays(inner) | inline_tables(inner), max_leaves=8)
STATEMENTS = (
    st.tuples(KEYS, VALUES).map(lambda pair: f"{pair[0]} = {pair[1]}")
    | KEYS.map(lambda key: f"[ {key} ]")
    | KEYS.map(lambda key: f"[[{key}]]")
    | KEYS.map(lambda key: f"[[{key}.inner]]")
    | st.sampled_from(["# a [comment]", ""])
)


@given(st.lists(STATEMENTS, max_size=8), st.sampled_from(["\n", "\r\n"]))
def test_whatever_the_text_every_value_has_a_line(statements: list[str], ending: str) -> None:
    text = ""
    for statement in statements:
        longer = text + statement + ending
        try:
            tomllib.loads(longer)
        except tomllib.TOMLDecodeError:  # said twice, or an odd place
            continue
        text = longer
    lines = toml_lines(text)
    assert set(lines) == set(places(tomllib.loads(text)))
    assert all(1 <= line <= text.count("\n") for line in lines.values())
