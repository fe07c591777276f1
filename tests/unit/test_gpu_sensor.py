"""What gpu-check says of a sensor: exact for readings that are computed, and the truth of the simulated chips."""

from __future__ import annotations

import importlib
import json
import random
import time
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest

from fakes.nvml.curves import Steps
from fakes.nvml.library import SimulatedNvml, built
from fakes.nvml.profiles import PROFILES

ROOT = Path(__file__).parents[2]
GPU = "GPU-aaaaaaaa-0000-0000-0000-000000000000"


@pytest.fixture
def sensor(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("gpu_sensor")


def holds(number: int, shortest_s: float, longest_s: float) -> list[float]:
    chosen = random.Random(7)
    return [chosen.uniform(shortest_s, longest_s) for _ in range(number)]


class TestWindowFit:
    """Readings of 90 and 400 W, polled every millisecond, from a sensor that is known exactly."""

    @staticmethod
    def readings(sensor: Any, changes_s: list[float], period_ms: float, window_ms: float, lag_ms: float) -> list[Any]:
        points = (
            (0, 90.0),
            *((1e3 * at + lag_ms, 90.0 if number % 2 else 400.0) for number, at in enumerate(changes_s)),
        )
        power = Steps(points)
        noise = random.Random(3)
        seen: dict[int, float] = {}

        def at(ms: float) -> float:
            update = int(ms // period_ms)
            if update not in seen:
                end = update * period_ms
                mean = (power.integral(end) - power.integral(end - window_ms)) / window_ms
                seen[update] = mean + noise.gauss(0, 0.2)
            return seen[update]

        return [sensor.watch.EnergyEstimate(ms / 1e3, at(ms)) for ms in range(500, round(1e3 * changes_s[-1]) + 3000)]

    @pytest.mark.parametrize(
        ("period_ms", "window_ms", "lag_ms", "shortest_s"),
        [(100, 25, 0, 0.35), (100, 25, 12, 0.35), (100, 100, 0, 0.35), (20, 10, 0, 0.35), (100, 1000, 6, 2.4)],
    )
    def test_window_and_lag_are_found(
        self, sensor: Any, period_ms: float, window_ms: float, lag_ms: float, shortest_s: float
    ) -> None:
        changes_s = list(accumulate(holds(24, shortest_s, 1.3 * shortest_s), initial=2.0))
        steps = [sensor.Step(at, number % 2 == 0) for number, at in enumerate(changes_s)]
        readings = self.readings(sensor, changes_s, period_ms, window_ms, lag_ms)
        fit = sensor.window_fit(readings, steps, changes_s[-1] + 2)
        assert fit.reason is None
        assert fit.window_ms == pytest.approx(window_ms, rel=0.15, abs=3)
        assert fit.range_ms[0] <= window_ms <= fit.range_ms[1] < 1.4 * window_ms
        assert fit.lag_ms == pytest.approx(lag_ms, abs=4)
        assert fit.fit_error < 0.05

    def test_power_that_does_not_follow_the_load_has_no_window(self, sensor: Any) -> None:
        changes_s = [2.0, 2.5, 3.0, 3.5]
        readings = self.readings(sensor, [9.0], 100, 25, 0)
        fit = sensor.window_fit(readings, [sensor.Step(at, True) for at in changes_s], 4.0)
        assert fit.window_ms is None and fit.reason is not None


PROGRAM = """
import json, os, sys
from pathlib import Path
sys.path[:0] = ["benchmarks", "tests"]
import gpu_sensor
from factories.simulated_load import SimulatedLoad
gpu_sensor.BUSY_S, gpu_sensor.SHORT_STEPS, gpu_sensor.LONG_STEPS = 3.0, 16, 4
asked = json.loads(os.environ["ASKED"])
load = SimulatedLoad(Path(os.environ["LEM_FAKE_NVML"]), asked["rest_w"], asked["work_w"])
class Steps:
    busy = load.busy
    def steps(self, holds_s):
        return [gpu_sensor.Step(at, is_up) for at, is_up in load.steps(holds_s)]
print(json.dumps(gpu_sensor.describe(asked["uuid"], asked["name"], Steps())))
"""
EVERY_DAY = ("GB300",)
"""It has the scope of a module; each takes 20 s, most of it waiting."""


@pytest.mark.parametrize(
    "chip", [pytest.param(chip, marks=() if chip in EVERY_DAY else pytest.mark.slow) for chip in PROFILES]
)
def test_it_finds_what_each_simulated_chip_is(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, chip: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    profile = PROFILES[chip]
    nvml = SimulatedNvml(built(tmp_path_factory.getbasetemp().parent), tmp_path / "nvml.state")
    nvml.write(f"origin_ns {time.monotonic_ns()}", *profile.lines(0, GPU, f"constant {profile.idle_w}"))
    work_w = 0.8 * profile.limits.enforced if profile.limits else 60.0
    asked = {"uuid": GPU, "name": profile.name, "rest_w": profile.idle_w, "work_w": work_w}
    monkeypatch.chdir(ROOT)
    said = json.loads(nvml.python(PROGRAM, {"ASKED": json.dumps(asked)}))
    assert said["error"] is None
    for reading, window_ms in (("instant", profile.window_ms), ("average", profile.average_ms)):
        found = said[reading]
        assert found["reason"] is None, (reading, found)
        assert found["period_ms"] == pytest.approx(profile.period_ms, rel=0.2), reading
        # On a busy machine polls are late, and the range is wider.
        least_ms, most_ms = found["range_ms"]
        assert 0.9 * least_ms <= window_ms <= 1.1 * most_ms, (reading, found)
    assert said["counter"]["period_ms"] == pytest.approx(profile.counter_period_ms, rel=0.2)
    scopes = said["scopes"]
    assert (scopes["power_w"]["module"] is not None) == profile.has_module
    assert (scopes["power_w"]["memory"] is not None) == profile.has_module
    assert scopes["counter"] == "gpu"
    limits = said["limits"]
    enforced_w, least_w, most_w = profile.limits or (None, None, None)
    assert (limits["enforced_w"], limits["least_w"], limits["most_w"]) == (enforced_w, least_w, most_w)
    assert limits["readings"] > 1000 and limits["highest_reading_w"] <= work_w + 0.001
    outside = ("readings_not_positive", "readings_above", "counter_steps_back", "counter_leaps")
    assert [limits[name] for name in outside] == [0, 0, 0, 0]
