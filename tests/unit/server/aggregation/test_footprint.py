"""Carbon, cost and quality: only from what the user gave or a table says, with what they came from."""

from __future__ import annotations

import math
from typing import Any

import pytest

from factories.evidence import Evidence, simulated
from lem_domain.config.experiment import ExperimentConfig
from lem_domain.evidence.streams import SAMPLER
from lem_domain.results.run import FootprintResult, RunResult
from lem_server.aggregation.result import aggregate

WATTS, SECONDS, TOKENS = 360.0, 10, 10
KWH = WATTS * SECONDS / 3.6e6


def result_of(summaries: dict[str, dict[str, Any]] | None = None, *, watts: bool = True, **config: Any) -> RunResult:
    document = {"backend": "simulated", "model": "m", **config}
    made = Evidence(devices=(simulated(),), config=ExperimentConfig.model_validate(document))
    made.request(0, 1.0, [1.0 + SECONDS * (step + 1) / TOKENS for step in range(TOKENS)])
    if watts:
        made.power([0.1 * step for step in range(130)], watts=lambda _: WATTS)
    for process, said in (summaries or {}).items():
        made.summaries[process].update(said)
    stored = made.stored()
    return aggregate(stored.inputs, stored.source)


def footprint_result(summaries: dict[str, dict[str, Any]] | None = None, **config: Any) -> FootprintResult:
    found = result_of(summaries, **config).footprint
    assert found is not None
    return found


def test_nothing_is_invented() -> None:
    result = result_of()
    assert (result.footprint, result.quality) == (None, None)


@pytest.mark.proves("carbon.gco2e_per_kwh", "carbon.pue", on="server")
def test_carbon_is_energy_times_what_the_user_gave() -> None:
    plain = footprint_result(carbon={"gco2e_per_kwh": 400})
    assert plain.carbon.value == pytest.approx(KWH * 400, rel=1e-3)
    assert plain.carbon.unit == "gCO2e"
    assert plain.carbon_per_output_token.value == pytest.approx(KWH * 400 / TOKENS, rel=1e-3)
    assert "400 gCO2e/kWh (the configuration)" in (plain.carbon_from or "")
    assert (plain.cost.value, plain.cost.reason) == (None, "cost gives no price")
    site = footprint_result(carbon={"gco2e_per_kwh": 400, "pue": 1.5})
    assert site.carbon.value == pytest.approx(1.5 * (plain.carbon.value or math.nan))
    assert "PUE 1.5" in (site.carbon_from or "")


@pytest.mark.proves("carbon.country", on="server")
def test_carbon_of_a_country_is_what_the_worker_read_from_the_table() -> None:
    table = {"country": "FRA", "gco2e_per_kwh": 56.0, "source": "France 2023, table of CodeCarbon 3"}
    found = footprint_result({SAMPLER: {"carbon_intensity": table}}, carbon={"country": "FRA"})
    assert found.carbon.value == pytest.approx(KWH * 56, rel=1e-3)
    assert "France 2023, table of CodeCarbon 3" in (found.carbon_from or "")


@pytest.mark.parametrize(
    ("told", "reason"),
    [
        (None, "no carbon intensity of FRA"),
        ({"country": "DEU", "gco2e_per_kwh": 1.0, "source": "s"}, "no carbon intensity of FRA"),
        ({"country": "FRA", "reason": "the table has no FRA"}, "the table has no FRA"),
        ({"country": "FRA", "gco2e_per_kwh": "much", "source": "s"}, "no carbon intensity of FRA"),
    ],
)
def test_without_a_factor_carbon_is_null_with_the_reason(told: Any, reason: str) -> None:
    found = footprint_result({SAMPLER: {"carbon_intensity": told}}, carbon={"country": "FRA"})
    assert found.carbon.value is None
    assert reason in (found.carbon.reason or "")
    assert found.carbon_from is None


@pytest.mark.proves("cost.price_per_kwh", "cost.currency", "cost.pue", on="server")
def test_cost_is_energy_times_the_price() -> None:
    found = footprint_result(cost={"price_per_kwh": 0.3, "currency": "EUR", "pue": 2})
    assert found.cost.value == pytest.approx(KWH * 2 * 0.3, rel=1e-3)
    assert found.cost.unit == "EUR"
    assert found.cost_per_output_token.value == pytest.approx(KWH * 2 * 0.3 / TOKENS, rel=1e-3)
    assert "0.3 EUR/kWh" in (found.cost_from or "")


def test_without_energy_there_is_neither() -> None:
    found = result_of(
        watts=False, carbon={"gco2e_per_kwh": 400}, cost={"price_per_kwh": 0.3, "currency": "EUR"}
    ).footprint
    assert found is not None
    assert found.carbon.value is found.cost.value is None
    assert found.carbon.reason == found.cost.reason
    assert found.carbon.reason is not None


def test_perplexity_is_the_exponential_of_the_mean() -> None:
    said = {"nats": 300.0, "tokens": 100, "text": "harbour-v1", "text_sha256": "0" * 64}
    quality = result_of({"rank-0": {"quality": said}}, backend="pytorch", quality=True).quality
    assert quality is not None
    assert quality.perplexity.value == pytest.approx(math.exp(3))
    assert (quality.tokens, quality.text) == (100, "harbour-v1")


@pytest.mark.parametrize(
    "said", [None, {"nats": "x", "tokens": 3}, {"nats": 3.0, "tokens": 0}, {"nats": 1e6, "tokens": 1}]
)
def test_a_perplexity_that_can_not_be_had_says_why(said: Any) -> None:
    quality = result_of({"rank-0": {"quality": said}}, backend="pytorch", quality=True).quality
    assert quality is not None
    assert quality.perplexity.value is None
    assert quality.perplexity.reason
