"""Windows of several lengths out of one run: white noise spreads with 1 / √length."""

from __future__ import annotations

import numpy as np
import pytest

from factories.evidence import Evidence, cpu, simulated
from lem_domain.config.experiment import ExperimentConfig
from lem_domain.results.window_study import WindowStudy
from lem_domain.wire.runs import EffectiveConfig, EffectiveParameter
from lem_server.aggregation.errors import EvidenceMissing
from lem_server.aggregation.window_study import window_study

LENGTHS = (1.0, 2.0, 4.0, 8.0, 16.0)


def study(evidence: Evidence, lengths: tuple[float, ...] = LENGTHS, target: float = 0.02) -> WindowStudy:
    stored = evidence.stored()
    return window_study(stored.inputs, stored.source, lengths, target)


def noisy(seconds: int, sd_w: float, seed: int = 1, *, full: bool = False) -> Evidence:
    """One request at a time with ten tokens a second, on power of 100 W with independent noise every 100 ms."""
    evidence = Evidence(devices=(simulated(),))
    if full:
        evidence.config = ExperimentConfig.model_validate({"backend": "simulated", "model": "test"})
        evidence.effective_config = EffectiveConfig(
            engine="simulated 1",
            parameters=(EffectiveParameter(name="simulated.batch_size", requested=1, effective=1, confirmed=True),),
        )
    rng = np.random.default_rng(seed)
    joules = np.concatenate(([0.0], np.cumsum(rng.normal(100, sd_w, size=10 * (seconds + 2)) * 0.1)))
    times = np.arange(len(joules)) / 10 - 1
    evidence.power(times.tolist(), joules=lambda t: float(np.interp(t, times, joules)) + 10)
    for second in range(seconds):
        tokens = [second + (number + 1) / 10 for number in range(10)]
        evidence.request(second, float(second), tokens, scheduled=float(second), prompt=0, batch=second)
    return evidence


def spreads(found: WindowStudy) -> list[float]:
    values = [one.cv.value for one in found.lengths]
    assert None not in values
    return [value for value in values if value is not None]


def test_white_noise_spreads_with_the_root_of_the_length() -> None:
    found = study(noisy(480, 20.0))
    assert [one.windows for one in found.lengths] == [200, 200, 120, 60, 30]
    for one, spread in zip(found.lengths, spreads(found), strict=True):
        # 20 W in 100 W, over 10 independent values per second; the spread of a spread of n values is about 1 / √(2 n).
        truth = 0.2 / np.sqrt(10 * one.length_s)
        assert spread == pytest.approx(truth, rel=3.5 / np.sqrt(2 * one.windows))
        assert one.energy_per_output_token_j.value == pytest.approx(10, rel=0.02)
    assert found.shortest_s.value == 16.0
    # The counter leaves 0.2 s in the length open.
    assert study(noisy(480, 20.0), target=0.07).shortest_s.value == 4.0
    assert study(noisy(480, 20.0), target=0.21).shortest_s.value == 1.0


def test_level_power_has_no_spread_and_the_bound_falls_with_the_length() -> None:
    found = study(noisy(64, 0.0))
    assert max(spreads(found)) < 1e-4
    bounds = [one.bound.value or 0.0 for one in found.lengths]
    # Two periods of 100 ms and the rounding of a count.
    for bound, length in zip(bounds, LENGTHS, strict=True):
        assert bound == pytest.approx(0.2 / length, rel=0.05)
    assert found.shortest_s.value == 16.0
    assert study(noisy(64, 0.0), target=0.051).shortest_s.value == 4.0


def test_a_length_of_which_there_are_not_two_has_no_spread() -> None:
    found = study(noisy(20, 5.0), (10.0, 15.0, 60.0), target=0.5)
    assert [one.windows for one in found.lengths] == [2, 1, 0]
    assert [one.cv.reason for one in found.lengths] == [None, "two windows are needed", "the run has no 60 s"]
    assert found.lengths[2].bound.reason == "the run has no 60 s"
    assert found.shortest_s.value == 10.0
    none = study(noisy(20, 5.0), (60.0,)).shortest_s
    assert none.value is None and none.reason


def test_the_steady_state_is_what_is_cut() -> None:
    evidence = noisy(40, 0.0, full=True)
    found = study(evidence)
    assert found.within == "steady_state"
    assert found.duration_s == pytest.approx(40)
    assert {one.steady_share.value for one in found.lengths} == {1.0}
    whole = study(noisy(40, 0.0))
    assert whole.within == "window"
    assert {one.steady_share.value for one in whole.lengths} == {None}
    assert all(one.steady_share.reason for one in whole.lengths)


def test_without_energy_tokens_or_a_bound_it_says_why() -> None:
    nothing = Evidence(devices=(simulated(),))
    nothing.request(0, 0.0, [1.0, 10.0])
    assert "no power was sampled" in str(study(nothing).lengths[0].cv.reason)
    silent = noisy(20, 0.0)
    silent.rows = {key: rows for key, rows in silent.rows.items() if key[1] != "tokens"}
    assert "no token times" in str(study(silent).lengths[0].cv.reason)
    pause = Evidence(devices=(simulated(),))
    pause.request(0, 0.0, [0.5, 10.0])
    pause.power([at / 10 for at in range(-10, 120)], joules=lambda t: 100 * t + 200)
    assert "no token was generated in a window of 1 s" in str(study(pause).lengths[0].cv.reason)
    modelled = Evidence(devices=(cpu(),))
    for second in range(20):
        modelled.request(second, float(second), [second + 0.5, second + 1.0])
    modelled.host_power("package", [at / 10 for at in range(-10, 230)], joules=lambda t: 40 * t + 100)
    found = study(modelled)
    assert (found.lengths[0].bound.value, found.lengths[0].bound.reason) == (None, "a model of power has no bound")
    assert found.shortest_s.value == 1.0


def test_missing_evidence_is_refused() -> None:
    stored = noisy(4, 0.0).stored()
    less = stored.without("rank-0", next(chunk.stream for chunk in stored.chunks if chunk.stream == "tokens"))
    with pytest.raises(EvidenceMissing):
        window_study(less.inputs, less.source, LENGTHS, 0.02)
