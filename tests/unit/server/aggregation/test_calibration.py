"""A user's calibration corrects every figure of `m2`, and what remains of the sensor's error is in the bound."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from factories.evidence import Evidence, gpu, simulated
from lem_domain.config.experiment import ExperimentConfig
from lem_domain.config.hashing import config_hash
from lem_domain.results.findings import FindingCode, Severity
from lem_domain.results.method import MethodVersion
from lem_domain.results.run import RunResult
from lem_server.aggregation.result import aggregate

GAIN, OFFSET_W = 0.9, -6.0
READY_W, BUSY_W = 100.0, 300.0
OWN = {
    "device": "GPU-0",
    "gain": GAIN,
    "gain_bound": 0.01,
    "offset_w": OFFSET_W,
    "offset_bound_w": 1,
    "source": "LMG671",
}
MODEL = {"device": "NVIDIA L40S", "gain": 0.8, "source": "data sheet"}


def shown(watts: float) -> float:
    """What a reading shows of a power."""
    return GAIN * watts + OFFSET_W


def true_w(time: float) -> float:
    """100 W without requests, 300 W around the window of 20 to 32 s."""
    return BUSY_W if 19 <= time < 33 else READY_W


def true_j(time: float) -> float:
    return READY_W * time + (BUSY_W - READY_W) * min(max(time - 19, 0), 14)


def config(*entries: dict[str, Any]) -> ExperimentConfig:
    return ExperimentConfig.model_validate(
        {"backend": "simulated", "model": "test", "energy": {"calibration": list(entries)}}
    )


def evidence(*entries: dict[str, Any], counter: bool = True, **fields: Any) -> Evidence:
    """One request in lockstep: 20 s to 23 s prefill, to 32 s decode."""
    made = Evidence(config=config(*entries), **fields)
    made.request(0, 20.0, [23.0, 26.0, 32.0], batch=0)
    joules = (lambda t: 50 + GAIN * true_j(t) + OFFSET_W * t) if counter else None
    made.power([0.1 * step for step in range(451)], watts=lambda t: shown(true_w(t)), joules=joules)
    made.baseline("ready", 5, 15)
    made.baseline("ready_after", 34, 44)
    return made


def result_of(made: Evidence, **parameters: Any) -> RunResult:
    stored = made.stored(**parameters)
    return aggregate(stored.inputs, stored.source)


def codes(result: RunResult) -> set[FindingCode]:
    return {finding.code for finding in result.findings}


@pytest.mark.proves(
    "energy.calibration",
    "energy.calibration[].device",
    "energy.calibration[].gain",
    "energy.calibration[].gain_bound",
    "energy.calibration[].offset_w",
    "energy.calibration[].offset_bound_w",
    "energy.calibration[].source",
    on="server",
)
@pytest.mark.parametrize("counter", [True, False], ids=["counter", "integral"])
def test_every_figure_is_that_of_the_true_power(counter: bool) -> None:
    result = result_of(evidence(OWN, counter=counter))
    assert codes(result) <= {FindingCode.PART_TIME_SENSOR}
    energy = result.energy
    total, (device,) = energy.total, energy.devices
    assert total.joules == pytest.approx(BUSY_W * 12, rel=2e-3)
    assert energy.net.joules == pytest.approx((BUSY_W - READY_W) * 12, rel=4e-3)
    assert energy.peak_power_w.value == device.peak_power_w.value == pytest.approx(BUSY_W)
    assert [one.mean_power_w.value for one in energy.baselines] == [pytest.approx(READY_W)] * 2
    assert device.calibration is not None and device.calibration.source == "LMG671"
    assert device.uncorrected_j == pytest.approx(shown(BUSY_W) * 12, rel=2e-3)
    parts = total.bound_parts
    assert parts is not None and parts.sensor_gain == 0.01 and parts.disagreement_j == 0
    assert parts.sensor_offset_w == pytest.approx(1, abs=1e-3)
    assert parts.calibration == "calibration of GPU-0: LMG671"
    assert energy.net.bound_parts is not None and energy.net.bound_parts.sensor_gain == 0.01
    if counter:
        assert device.integrated is not None and device.integrated.joules == pytest.approx(total.joules, rel=2e-3)
        prefill, decode = energy.phases.prefill.energy, energy.phases.decode.energy
        assert prefill.joules == pytest.approx(BUSY_W * 3, rel=1e-2)
        assert decode.joules == pytest.approx(BUSY_W * 9, rel=1e-2)
        assert prefill.bound_parts is not None and prefill.bound_parts.sensor_gain == 0.01


def test_an_idle_baseline_of_an_earlier_attempt_is_corrected_as_well() -> None:
    made = evidence(OWN)
    made.event("sampler", "baseline_reused", '{"parts": {"GPU-0": 84.0}, "age_s": 9, "taken_by": "att_1"}')
    (idle, *_) = result_of(made).energy.baselines
    assert idle.context == "idle" and idle.mean_power_w.value == pytest.approx((84 + 6) / 0.9)


def test_the_bound_without_it_is_the_model_s_and_holds_the_readings() -> None:
    made = evidence()
    made.devices = (gpu(),)
    plain, own = result_of(made), result_of(made, calibration=(OWN,))
    assert plain.energy.total.joules == pytest.approx(shown(BUSY_W) * 12, rel=2e-3)
    assert plain.energy.devices[0].calibration is None
    assert own.energy.total.joules == pytest.approx(BUSY_W * 12, rel=2e-3)
    assert plain.energy.total.bound_j is not None and own.energy.total.bound_j is not None
    assert own.energy.total.bound_j < plain.energy.total.bound_j / 2
    assert own.evidence_sha256 == plain.evidence_sha256 and own.inputs_sha256 == plain.inputs_sha256
    assert own.parameters["calibration"] == [{**OWN, "offset_bound_w": 1.0}]
    assert "calibration" not in plain.parameters


def test_a_given_one_replaces_that_of_the_configuration() -> None:
    made = evidence(OWN)
    assert result_of(made, calibration=()).energy.total.joules == pytest.approx(shown(BUSY_W) * 12, rel=2e-3)
    other = {**OWN, "gain": 0.6, "offset_w": 0}
    found = result_of(made, calibration=(other,)).energy.total.joules
    assert found == pytest.approx(shown(BUSY_W) / 0.6 * 12, rel=2e-3)


def test_a_uuid_applies_before_the_parent_s_and_the_model_s() -> None:
    def gain_of(made: Evidence) -> float | None:
        applied = result_of(made).energy.devices[0].calibration
        return None if applied is None else applied.gain

    parent = {**OWN, "device": "GPU-parent", "gain": 0.7}
    made = evidence(MODEL, parent, OWN)
    made.summaries["sampler"]["devices"] = [{"uuid": "GPU-0", "mig_parent_uuid": "GPU-parent"}]
    assert gain_of(made) == GAIN
    made.config = config(MODEL, parent)
    assert gain_of(made) == 0.7
    made.config = config(MODEL)
    assert gain_of(made) == 0.8
    made.config = config({**MODEL, "device": "NVIDIA L40"})
    assert gain_of(made) is None, "a name counts as a whole"


@pytest.mark.parametrize("entries", [(OWN, MODEL), (MODEL,), ()])
def test_one_that_corrects_no_device_is_a_note(entries: tuple[dict[str, Any], ...]) -> None:
    other = {**OWN, "device": "GPU-9"}
    result = result_of(evidence(*entries, other))
    [finding] = [one for one in result.findings if one.code is FindingCode.CALIBRATION_UNUSED]
    assert finding.severity is Severity.NOTE
    assert "GPU-9" in finding.message and ("NVIDIA L40S," in finding.message) == (len(entries) == 2)
    assert FindingCode.CALIBRATION_UNUSED not in codes(result_of(evidence(*entries[:1])))


def test_m1_corrects_nothing_and_says_so() -> None:
    result = result_of(evidence(OWN, method=MethodVersion.M1))
    assert result.energy.total.joules == pytest.approx(shown(BUSY_W) * 12, rel=2e-3)
    assert FindingCode.CALIBRATION_UNUSED in codes(result)


def test_simulated_devices_may_have_one() -> None:
    result = result_of(evidence({**OWN, "device": "Simulated device"}, devices=(simulated(),)))
    assert result.energy.total.joules == pytest.approx(BUSY_W * 12, rel=2e-3)


def test_an_entry_is_part_of_the_hash_and_a_written_default_is_not() -> None:
    assert config_hash(config(OWN)) != config_hash(config())
    assert config_hash(config(MODEL)) == config_hash(config({**MODEL, "gain_bound": 0.04, "offset_w": 0.0}))
    assert config_hash(config(OWN)) != config_hash(config({**OWN, "gain": 0.91}))


@pytest.mark.parametrize(
    "wrong",
    [
        {"gain": 0.5},
        {"gain": 2},
        {"gain": float("nan")},
        {"gain": float("inf")},
        {"gain": None},
        {"gain_bound": -0.01},
        {"gain_bound": 0.6},
        {"offset_w": 101},
        {"offset_w": float("nan")},
        {"offset_bound_w": -1},
        {"source": ""},
        {"source": None},
        {"device": ""},
        {"slope": 1},
    ],
    ids=str,
)
def test_values_that_no_sensor_has_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as caught:
        config({**OWN, **wrong})
    (error,) = caught.value.errors()
    assert error["loc"] == ("energy", "calibration", 0, *wrong)


def test_two_entries_of_one_device_are_refused() -> None:
    with pytest.raises(ValidationError, match="calibration names GPU-0 twice"):
        config(OWN, MODEL, {**OWN, "gain": 1.1})
