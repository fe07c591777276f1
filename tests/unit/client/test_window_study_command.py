"""`lemctl window-study`: the lengths it asks for, the table, and what it says below."""

from __future__ import annotations

from typing import Any

import pytest

from lem_client.cli.main import main
from lem_client.client import Client
from lem_domain.results.figures import Figure
from lem_domain.results.window_study import StudiedLength, WindowStudy

RUN = "run_" + "1" * 32


def share(value: float | None, reason: str = "two windows are needed") -> Figure:
    return Figure(value=value, unit="1", reason=None if value is not None else reason)


def study(shortest: float | None) -> WindowStudy:
    lengths = [
        StudiedLength(
            length_s=length,
            windows=windows,
            energy_per_output_token_j=Figure(value=0.0123, unit="J"),
            cv=share(cv),
            bound=share(None, "a model of power has no bound"),
            steady_share=share(0.9),
        )
        for length, windows, cv in ((5.0, 4, 0.031), (10.0, 2, 0.015), (20.0, 1, None))
    ]
    return WindowStudy(
        run_id=RUN,
        attempt_id="att_" + "1" * 32,
        method="m2",
        within="steady_state",
        duration_s=20.0,
        lengths=tuple(lengths),
        target=0.02,
        shortest_s=Figure(value=shortest, unit="s", reason=None if shortest else "none"),
    )


def lem(monkeypatch: pytest.MonkeyPatch, found: WindowStudy, *words: str) -> tuple[int, dict[str, Any]]:
    asked: dict[str, Any] = {}

    def answer(_client: Client, _run: str, **parameters: Any) -> WindowStudy:
        asked.update(parameters)
        return found

    monkeypatch.setenv("LEM_TOKEN", "lem_test")
    monkeypatch.setattr(Client, "window_study", answer)
    with pytest.raises(SystemExit) as caught:
        main(("window-study", RUN, *words))
    assert isinstance(caught.value.code, int)
    return caught.value.code, asked


def test_it_shows_the_spread_by_length_and_the_shortest_that_is_enough(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, asked = lem(monkeypatch, study(10.0), "--lengths", "5,10,20", "--target", "0.02")
    shown = capsys.readouterr().out
    assert (code, asked["lengths_s"], asked["target"]) == (0, [5.0, 10.0, 20.0], 0.02)
    assert [line.split() for line in shown.splitlines() if " mJ" in line][:2] == [
        ["5", "s", "4", "12.3", "mJ", "3.10%", "–", "90.00%"],
        ["10", "s", "2", "12.3", "mJ", "1.50%", "–", "90.00%"],
    ]
    assert "from 10 s on spread and bound are within 2.00%" in shown
    assert shown.count("– bound: a model of power has no bound") == 1
    assert "cut out of the steady state, 20 s" in shown


def test_it_says_that_no_length_is_enough(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert lem(monkeypatch, study(None))[0] == 0
    assert "no length: none of 2.00%" in capsys.readouterr().out


def test_wrong_lengths_are_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert lem(monkeypatch, study(None), "--lengths", "5;10")[0] == 2
    assert "write seconds with commas" in capsys.readouterr().err
