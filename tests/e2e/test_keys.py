"""Configuration keys from a campaign file to figures, and what a dropped chunk costs, through real processes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from factories.campaign_files import campaign
from lem_domain.states import RunState

TESTS = Path(__file__).parents[1]
QUICK: dict[str, Any] = {
    "backend": "simulated",
    "model": "m",
    "prompts": {"synthetic": {"prompt_tokens": 50, "count": 4}},
    "output": {"max_tokens": 5},
    "warmup": {"enabled": False},
    "baseline": {"enabled": False},
    "energy": {"interval_ms": 10},
}


@pytest.mark.proves("carbon.gco2e_per_kwh", "cost.price_per_kwh", "cost.currency", "prefill_probe", on="simulated")
def test_a_study_with_probe_carbon_and_cost_and_one_with_a_lost_chunk(house, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    house.start_worker(
        "simulated",
        program=(sys.executable, "-m", "factories.worker_losing_chunks"),
        environment={"PYTHONPATH": str(TESTS)},
    )
    truth = {"power_w": 100, "prefill_ms_per_token": 2, "decode_ms_per_token": 50}
    path = campaign(
        tmp_path,
        **QUICK,
        window={"min_duration_s": 1},
        prefill_probe=True,
        carbon={"gco2e_per_kwh": 360, "pue": 1.5},
        cost={"price_per_kwh": 0.36, "currency": "EUR"},
        simulated=truth,
        sweep={"model": ["m", "loses-requests"]},
    )
    assert house.lemctl("run", path).returncode == 1
    with house.client() as client:
        whole, lost = list(client.runs())
        assert (lost.state, lost.reason) == (RunState.FAILED, "invalid_evidence")
        result = client.result(whole.id)
    joules = result.energy.total.joules
    assert joules == pytest.approx(100 * result.window.duration_s, rel=0.01)
    probe, footprint = result.energy.probe, result.footprint
    assert probe is not None and footprint is not None
    assert probe.energy.joules == pytest.approx(100 * probe.duration_s, rel=0.02)
    # 50 prompt tokens at 2 ms and 4 decode steps at 50 ms for each request: a third of the time is prefill.
    assert probe.prefill.joules == pytest.approx(joules / 3, rel=0.1)
    assert footprint.carbon.value == pytest.approx(joules * 1.5e-4)
    assert footprint.cost.value == pytest.approx(joules * 1e-7)
    shown = house.lemctl("show", whole.id).stdout
    for words in ("probe of prefill", "PUE 1.5", "gCO2e/kWh (the configuration)", "0.36 EUR/kWh"):
        assert words in shown
