"""Cursors: opaque, and refused when they are not what a list gave."""

from __future__ import annotations

import base64
import json
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from lem_domain.errors import ProblemCode
from lem_server.http.paging import Int4, decode_cursor, encode_cursor
from lem_server.http.problems import ProblemError

PLACE: TypeAdapter[tuple[UUID, Int4]] = TypeAdapter(tuple[UUID, Int4])


@given(st.uuids(), st.integers(min_value=-1, max_value=2**31 - 1))
def test_a_place_comes_back_from_its_cursor(campaign: UUID, position: int) -> None:
    assert decode_cursor("runs", encode_cursor("runs", (campaign, position)), PLACE) == (campaign, position)


def test_no_cursor_is_no_place() -> None:
    assert decode_cursor("runs", None, PLACE) is None


def made_up(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode()


@pytest.mark.parametrize(
    "cursor",
    [
        "",
        "nonsense",
        "ü",
        "=",
        made_up({}),
        made_up([]),
        made_up(1),
        made_up(["runs"]),
        made_up(["runs", "x", 1]),
        made_up(["runs", str(UUID(int=0)), 2**31]),
        made_up(["campaigns", str(UUID(int=0)), 1]),
        "W" * 500,
    ],
)
def test_a_made_up_cursor_is_refused_with_a_sentence(cursor: str) -> None:
    with pytest.raises(ProblemError) as refused:
        decode_cursor("runs", cursor, PLACE)
    assert refused.value.code is ProblemCode.BAD_REQUEST


@given(st.text(max_size=60))
def test_no_text_breaks_the_decoding(cursor: str) -> None:
    with pytest.raises(ProblemError):
        decode_cursor("runs", cursor, PLACE)
