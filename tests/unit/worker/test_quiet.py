"""Baselines that end when power is steady, and devices that have to settle."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lem_domain.config.measurement import BaselineConfig, SettleConfig
from lem_worker.process.protocol import BaselineTaken, ControlMessage, Settle, Settled, TakeBaseline
from lem_worker.sampler.baseline import IdlePhases
from lem_worker.sampler.stationarity import PowerHistory

SECOND = 1_000_000_000
TICK = SECOND // 20


class Rows:
    def __init__(self) -> None:
        self.rows: list[tuple[object, object, int, Any]] = []

    def append(self, **row: Any) -> None:
        detail = json.loads(row["detail"]) if row["detail"] else None
        self.rows.append((row["phase"], row["edge"], row["time_ns"], detail))

    def extend(self, **columns: object) -> None:
        raise NotImplementedError


class Rig:
    """A device whose power and temperature the test sets, and time that passes in ticks."""

    def __init__(self, *, baseline: BaselineConfig | None = None, settle: SettleConfig | None = None) -> None:
        self.watts: float | None = 50.0
        self.celsius: int | None = 40
        self.now_ns = 0
        self.phases = Rows()
        self.history = PowerHistory(5.0)
        self.idle_phases = IdlePhases(
            baseline or BaselineConfig(min_s=3, max_s=10), settle or SettleConfig(), self.phases, self, self.history
        )

    def power_w(self) -> float | None:
        return self.watts

    def hottest_c(self) -> int | None:
        return self.celsius

    def begin_means(self) -> None:
        self.begun_ns = self.now_ns

    def means_w(self) -> dict[str, float]:
        mean = self.history.mean_w(self.begun_ns)
        return {} if mean is None else {"GPU-0": mean}

    def until_answer(self, most_s: float, tick_ns: int = TICK) -> ControlMessage | None:
        end_ns = self.now_ns + round(most_s * SECOND)
        while self.now_ns < end_ns:
            self.now_ns += tick_ns
            if self.watts is not None:
                self.history.add(self.now_ns, self.watts)
            if (answer := self.idle_phases.check(self.now_ns)) is not None:
                return answer
        return None


@pytest.mark.proves("baseline.min_s", on="worker")
def test_a_baseline_ends_at_its_minimum_when_power_is_steady() -> None:
    rig = Rig()
    rig.idle_phases.begin(TakeBaseline(context="idle"), rig.now_ns)
    assert rig.until_answer(20) == BaselineTaken(context="idle", stationary=True, power_w=50, parts_w={"GPU-0": 50})
    assert rig.now_ns == pytest.approx(3 * SECOND, abs=TICK)
    assert rig.phases.rows == [
        ("baseline", "begin", 0, {"context": "idle"}),
        ("baseline", "end", rig.now_ns, {"context": "idle", "stationary": True, "standard_error": 0}),
    ]


@pytest.mark.proves("baseline.max_s", on="worker")
def test_a_baseline_that_does_not_become_steady_ends_at_its_cap_and_says_so() -> None:
    rig = Rig()
    rig.idle_phases.begin(TakeBaseline(context="ready"), rig.now_ns)
    answer = None
    while answer is None:
        rig.watts = 50.0 if (rig.now_ns // SECOND) % 2 else 150.0
        answer = rig.until_answer(0.05)
    assert isinstance(answer, BaselineTaken) and not answer.stationary
    assert rig.now_ns == pytest.approx(10 * SECOND, abs=TICK)


def test_a_baseline_without_any_power_does_not_wait_for_its_cap() -> None:
    rig = Rig()
    rig.watts = None
    rig.idle_phases.begin(TakeBaseline(context="idle"), rig.now_ns)
    assert rig.until_answer(20) == BaselineTaken(context="idle", stationary=False, power_w=None)
    assert rig.now_ns == pytest.approx(3 * SECOND, abs=TICK)


def test_a_baseline_whose_power_ceases_is_neither_stationary_nor_a_power() -> None:
    rig = Rig()
    rig.idle_phases.begin(TakeBaseline(context="ready"), rig.now_ns)
    assert rig.until_answer(2.9) is None
    rig.watts = None
    answer = rig.until_answer(20)
    assert isinstance(answer, BaselineTaken)
    assert (answer.stationary, answer.power_w) == (False, None)
    assert rig.now_ns == pytest.approx(4.9 * SECOND, abs=2 * TICK), "nobody is waited for any more"
    assert rig.phases.rows[-1][3] == {"context": "ready", "stationary": False, "standard_error": None}


def test_a_power_that_is_not_reported_for_a_moment_is_waited_for() -> None:
    rig = Rig()
    rig.idle_phases.begin(TakeBaseline(context="ready"), rig.now_ns)
    assert rig.until_answer(2.9) is None
    rig.watts = None
    assert rig.until_answer(1) is None
    rig.watts = 50.0
    answer = rig.until_answer(1)
    assert isinstance(answer, BaselineTaken) and answer.stationary


def test_one_reading_that_fails_is_waited_for_however_seldom_power_is_read() -> None:
    rig = Rig(baseline=BaselineConfig(min_s=15, max_s=60))
    rig.idle_phases.begin(TakeBaseline(context="ready"), rig.now_ns)
    tick_ns = 5 * SECOND
    assert rig.until_answer(10, tick_ns) is None
    rig.watts = None
    assert rig.until_answer(5, tick_ns) is None
    rig.watts = 50.0
    answer = rig.until_answer(30, tick_ns)
    assert isinstance(answer, BaselineTaken) and answer.stationary


@pytest.mark.parametrize(
    ("settle", "missing"),
    [
        (SettleConfig(temperature_c=35, max_s=600), "temperature"),
        (SettleConfig(idle_power=True, max_s=600), "power"),
    ],
)
def test_settling_does_not_wait_for_what_is_not_reported_any_more(settle: SettleConfig, missing: str) -> None:
    rig = Rig(settle=settle)
    rig.idle_phases.begin(TakeBaseline(context="ready"), rig.now_ns)
    rig.until_answer(20)
    rig.watts, begun_ns = 200.0, rig.now_ns
    rig.idle_phases.begin(Settle(), rig.now_ns)
    assert rig.until_answer(5) is None
    rig.watts = rig.celsius = None
    assert rig.until_answer(600) == Settled(settled=False)
    assert (rig.now_ns - begun_ns) / SECOND == pytest.approx(7, abs=0.1)
    detail = rig.phases.rows[-1][3]
    assert detail["settled"] is False
    assert detail["reason"].startswith("no source") and detail["reason"].endswith(missing)


def test_without_a_condition_there_is_nothing_to_wait_for() -> None:
    rig = Rig()
    rig.idle_phases.begin(Settle(), rig.now_ns)
    assert rig.until_answer(1) == Settled(settled=True)
    assert rig.now_ns == TICK


@pytest.mark.proves("settle.temperature_c", "settle.idle_power", on="worker")
def test_settling_waits_for_temperature_and_idle_power() -> None:
    rig = Rig(settle=SettleConfig(temperature_c=45, idle_power=True, max_s=60))
    rig.idle_phases.begin(TakeBaseline(context="ready"), rig.now_ns)
    rig.until_answer(20)
    rig.watts, rig.celsius = 200.0, 60
    rig.idle_phases.begin(Settle(), rig.now_ns)
    assert rig.until_answer(5) is None
    rig.celsius = 45
    assert rig.until_answer(5) is None
    rig.watts = 54.0
    assert rig.until_answer(5) == Settled(settled=True)
    assert rig.phases.rows[-1][3] == {"settled": True, "reason": None}


@pytest.mark.proves("settle.max_s", on="worker")
def test_settling_gives_up_at_its_cap_and_says_why() -> None:
    rig = Rig(settle=SettleConfig(temperature_c=35, max_s=2))
    rig.idle_phases.begin(Settle(), rig.now_ns)
    assert rig.until_answer(5) == Settled(settled=False)
    detail = rig.phases.rows[-1][3]
    assert detail["settled"] is False
    assert "40 °C" in detail["reason"] and "settle.temperature_c is 35" in detail["reason"]


def test_a_wait_that_is_broken_off_is_closed() -> None:
    rig = Rig()
    rig.idle_phases.begin(TakeBaseline(context="idle"), rig.now_ns)
    rig.until_answer(1)
    rig.idle_phases.close(rig.now_ns)
    rig.idle_phases.close(rig.now_ns)
    assert [row[1] for row in rig.phases.rows] == ["begin", "end"]
    assert rig.until_answer(5) is None
