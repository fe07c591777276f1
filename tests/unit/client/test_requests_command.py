"""`lemctl requests`: the summary in words, the table in the wanted order, CSV and JSON of all rows."""

from __future__ import annotations

import io
import json
from csv import DictReader

import pytest

from lem_client.cli.main import main
from lem_client.client import Client
from lem_domain.results.figures import Distribution, EnergyFigure, EnergyMethod, Figure
from lem_domain.results.requests import RequestEnergySummary, RequestRow, RequestTable

RUN = "run_" + "1" * 32


def row(number: int, energy_j: float | None, *, failed: bool = False) -> RequestRow:
    return RequestRow(
        process="rank-0",
        request_id=number,
        prompt_index=number,
        arrival_ns=100 - number,
        scheduled_ns=None,
        first_token_ns=None,
        last_token_ns=None,
        prompt_tokens=10 * (number + 1),
        cached_prompt_tokens=None,
        generated_tokens=5,
        failed=failed,
        energy_j=energy_j,
        bound_j=None if energy_j is None else 0.25,
    )


def table(reason: str | None = None) -> RequestTable:
    def figure(value: float, unit: str = "J") -> Figure:
        return Figure(value=None if reason else value, unit=unit, reason=reason)

    names = ("mean", "sd", "min", "p50", "p90", "p95", "p99", "max")
    each = Distribution(
        unit="J", count=0 if reason else 2, reason=reason, **dict.fromkeys(names, None if reason else 3.0)
    )
    return RequestTable(
        summary=RequestEnergySummary(
            run_id=RUN,
            attempt_id="att_" + "1" * 32,
            method="m2",
            weights="tokens",
            total=EnergyFigure(joules=10.0, method=EnergyMethod.COUNTER),
            requests=3,
            failed_requests=1,
            without_energy=1,
            finished_energy_j=figure(6.0),
            failed_energy_j=figure(0.0),
            idle_energy_j=figure(4.0),
            per_request_j=each,
            resolution_ms=figure(100.0, "ms"),
        ),
        requests=(row(0, 2.0), row(1, 4.0), row(2, None, failed=True)),
    )


def lem(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, found: RequestTable, *words: str) -> str:
    monkeypatch.setenv("LEM_TOKEN", "lem_test")
    monkeypatch.setattr(Client, "requests", lambda *_, **__: found)
    with pytest.raises(SystemExit) as caught:
        main(("requests", RUN, *words))
    output = capsys.readouterr()
    assert (caught.value.code, output.err) == (0, "")
    return output.out


def order(shown: str) -> list[str]:
    return [line.split()[1] for line in shown.splitlines() if line.strip().startswith("rank-0")]


def test_the_summary_adds_up_in_words(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    shown = lem(capsys, monkeypatch, table())
    for words in (
        "requests    3, 1 of them failed",
        "finished    6.00 J (60.0%)",
        "failed      0 J (0.0%)",
        "idle        4.00 J (40.0%)",
        "per request 3.00 J median",
        "without     1 requests",
        "processed tokens, because a rank did not report its model",
        "readings resolve 100 ms",
    ):
        assert words in shown


def test_a_null_energy_says_why(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    shown = lem(capsys, monkeypatch, table("method m1 divides nothing"))
    assert "energy of each request: – (method m1 divides nothing)" in shown


@pytest.mark.parametrize(
    ("sort", "expected"),
    [("energy", ["1", "0", "2"]), ("prompt_tokens", ["2", "1", "0"]), ("arrival", ["2", "1", "0"])],
)
def test_the_rows_are_in_the_wanted_order(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, sort: str, expected: list[str]
) -> None:
    assert order(lem(capsys, monkeypatch, table(), "--sort", sort)) == expected
    shown = lem(capsys, monkeypatch, table(), "--sort", sort, "--limit", "1")
    assert order(shown) == expected[:1]
    assert "2 more requests" in shown
    (document,) = lem(capsys, monkeypatch, table(), "--sort", sort, "--json").splitlines()
    assert [str(one["request_id"]) for one in json.loads(document)["requests"]] == expected
    rows = list(DictReader(io.StringIO(lem(capsys, monkeypatch, table(), "--sort", sort, "--csv"))))
    assert [one["request_id"] for one in rows] == expected
    assert list(rows[0]) == list(RequestRow.model_fields)
    assert {one["energy_j"] for one in rows} == {"2.0", "4.0", ""}
