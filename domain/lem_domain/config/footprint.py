"""Factors from energy to carbon and cost: given by the user, or from a published table of countries."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from lem_domain.config.model_base import ConfigModel, extras, key

_PUE = "Power usage effectiveness of the site: energy of the whole site per energy of its computers."


class CarbonConfig(ConfigModel):
    """Carbon per energy; without it a result has no carbon figure."""

    gco2e_per_kwh: float | None = key(None, "Carbon intensity of the electricity.", ge=0, le=5000, unit="g/kWh")
    country: str | None = key(
        None,
        "ISO 3166-1 alpha-3 code (`FRA`, `USA`): the yearly mean intensity in CodeCarbon's table.",
        pattern=r"^[A-Z]{3}$",
    )
    pue: float | None = key(None, _PUE, ge=1, le=10, unit="1")

    @model_validator(mode="after")
    def _one_intensity(self) -> Self:
        if (self.gco2e_per_kwh is None) == (self.country is None):
            raise ValueError("carbon needs one intensity; set either gco2e_per_kwh or country")
        return self


class CostConfig(ConfigModel):
    """Price of energy; without it a result has no cost figure."""

    price_per_kwh: float = Field(
        ge=0, le=1e6, description="Price in `currency` per kWh.", json_schema_extra=extras(unit="currency/kWh")
    )
    currency: str = Field(pattern=r"^[A-Z]{3}$", description="ISO 4217 code, such as `EUR`.")
    pue: float | None = key(None, _PUE, ge=1, le=10, unit="1")
