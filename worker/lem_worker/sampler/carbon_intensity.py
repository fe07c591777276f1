"""The yearly mean carbon intensity of a country's electricity, from the table that CodeCarbon ships."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
from pathlib import Path

from pydantic.types import JsonValue

_TABLE = Path("data", "private_infra", "global_energy_mix.json")


def intensity_of(country: str) -> dict[str, JsonValue]:
    """Return `gco2e_per_kwh` with its `source`, or the `reason` why it is unknown; `country` is an ISO 3166 code."""
    # The table is read from the package's folder, because importing codecarbon takes seconds.
    found = importlib.util.find_spec("codecarbon")
    if found is None or not found.submodule_search_locations:
        return {"country": country, "reason": "codecarbon, which has the table, is not installed on the worker"}
    try:
        table = json.loads(Path(found.submodule_search_locations[0], _TABLE).read_text(encoding="utf-8"))
        entry = table[country]
        return {
            "country": country,
            "gco2e_per_kwh": float(entry["carbon_intensity"]),
            "source": f"{entry['country_name']} {entry['year']}, table of CodeCarbon "
            f"{importlib.metadata.version('codecarbon')}",
        }
    except KeyError:
        return {"country": country, "reason": f"CodeCarbon's table has no {country}; give carbon.gco2e_per_kwh"}
    except (OSError, ValueError, TypeError) as error:
        return {"country": country, "reason": f"CodeCarbon's table can't be read ({error}); give carbon.gco2e_per_kwh"}
