"""Carbon and cost of the job's energy, from the user's factors (docs/measurement.md, Energy)."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic.types import JsonValue

from lem_domain.config.experiment import ExperimentConfig
from lem_domain.config.footprint import CarbonConfig
from lem_domain.evidence.streams import SAMPLER
from lem_domain.results.figures import EnergyFigure, Figure
from lem_domain.results.run import FootprintResult, WorkResult
from lem_server.aggregation.inputs import Summaries
from lem_server.aggregation.json_values import Maybe, Recorded

_J_PER_KWH = 3.6e6


class _Intensity(Recorded):
    country: str
    gco2e_per_kwh: Maybe[float] = None
    source: Maybe[str] = None
    reason: Maybe[str] = None


def footprint_result(
    config: ExperimentConfig, total: EnergyFigure, work: WorkResult, summaries: Summaries
) -> FootprintResult | None:
    """Return energy / 3.6e6 J per kWh × PUE × factor, and that per generated token; None if neither is configured."""
    if config.carbon is None and config.cost is None:
        return None
    carbon = carbon_from = cost = cost_from = None
    if config.carbon is not None:
        intensity, source = _intensity(config.carbon, summaries.get(SAMPLER, {}))
        carbon, carbon_from = _product(total, config.carbon.pue, intensity, "gCO2e", source)
    if config.cost is not None:
        price, unit = config.cost.price_per_kwh, config.cost.currency
        cost, cost_from = _product(total, config.cost.pue, price, unit, "the configuration")
    carbon = carbon or Figure(value=None, unit="gCO2e", reason="carbon gives no factors")
    cost = cost or Figure(value=None, unit="1", reason="cost gives no price")
    return FootprintResult(
        carbon=carbon,
        carbon_per_output_token=_per_token(carbon, work),
        carbon_from=carbon_from,
        cost=cost,
        cost_per_output_token=_per_token(cost, work),
        cost_from=cost_from,
    )


def _intensity(carbon: CarbonConfig, sampler: Mapping[str, JsonValue]) -> tuple[float | None, str]:
    """Return the factor and its source, or None and the reason."""
    if carbon.gco2e_per_kwh is not None:
        return carbon.gco2e_per_kwh, "the configuration"
    reported = _Intensity.of(sampler.get("carbon_intensity"))
    unknown = f"the worker reported no carbon intensity of {carbon.country}"
    if reported is None or reported.country != carbon.country:
        return None, unknown
    if reported.gco2e_per_kwh is None or reported.source is None:
        return None, reported.reason or unknown
    return reported.gco2e_per_kwh, reported.source


def _product(
    total: EnergyFigure, pue: float | None, factor: float | None, unit: str, source: str
) -> tuple[Figure, str | None]:
    if factor is None:
        return Figure(value=None, unit=unit, reason=source), None
    if total.joules is None:
        return Figure(value=None, unit=unit, reason=total.reason), None
    kwh = total.joules / _J_PER_KWH
    overhead = "" if pue is None else f" × PUE {pue:g}"
    method = total.method.value if total.method is not None else "unknown"
    words = f"{kwh:.6g} kWh ({method}){overhead} × {factor:g} {unit}/kWh ({source})"
    return Figure(value=kwh * (pue or 1.0) * factor, unit=unit), words


def _per_token(figure: Figure, work: WorkResult) -> Figure:
    each = figure.value / work.generated_tokens if figure.value is not None and work.generated_tokens else None
    return Figure.of(each, figure.unit, figure.reason or "no token was generated")
