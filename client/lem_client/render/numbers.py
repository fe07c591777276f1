"""Numbers for people: scaled units, as many digits as the spread allows, and a dash for a missing value."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, NamedTuple

MISSING: Final = "–"

_PREFIXES: Final = ((1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""), (1e-3, "m"), (1e-6, "µ"), (1e-9, "n"))
_SCALED: Final = frozenset({"J", "W", "Wh"})

_NO_SPREAD: Final = 1e-4
"""A fourth digit can't show a relative spread below this."""


class Scale(NamedTuple):
    """A prefixed unit and its factor."""

    factor: float
    unit: str


def scale_for(values: Sequence[float], unit: str) -> Scale:
    """Choose one unit for a whole column by its largest value, so that rows compare."""
    largest = max((abs(value) for value in values if math.isfinite(value)), default=0.0)
    if unit not in _SCALED or largest == 0:
        return Scale(1.0, unit)
    for factor, prefix in _PREFIXES:
        if largest >= factor:
            return Scale(factor, prefix + unit)
    smallest, prefix = _PREFIXES[-1]
    return Scale(smallest, prefix + unit)


def number(value: float | None, digits: int = 3) -> str:
    """Format with significant digits, without an exponent in a readable range; a dash for None."""
    if value is None:
        return MISSING
    if value == 0:
        return "0"
    magnitude = math.floor(math.log10(abs(value)))
    if not -5 <= magnitude < 9:
        return f"{value:.{digits - 1}e}"
    return f"{value:.{max(0, digits - 1 - magnitude)}f}"


def mean_and_spread(mean: float | None, sd: float | None, scale: Scale) -> str:
    """`12.3 ± 0.4` in the column's unit: three digits of the mean, or four to show the spread's first digit."""
    if mean is None:
        return MISSING
    mean = mean / scale.factor
    if sd is None:
        return number(mean)
    sd = sd / scale.factor
    decimals = _decimals(mean, 3)
    if sd > abs(mean) * _NO_SPREAD:
        decimals = max(decimals, min(_decimals(sd, 1), _decimals(mean, 4)))
    return f"{mean:.{decimals}f} ± {sd:.{decimals}f}"


def quantity(value: float | None, unit: str, digits: int = 3) -> str:
    """One number with its unit, scaled: `12.3 mJ`."""
    if value is None:
        return MISSING
    scale = scale_for([value], unit)
    return f"{number(value / scale.factor, digits)} {scale.unit}"


def duration(seconds: float) -> str:
    """`45 s`, `3 min 20 s`, `2 h 05 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 and seconds != whole else f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"


def _decimals(value: float, digits: int) -> int:
    if value == 0 or not math.isfinite(value):
        return 0
    return max(0, digits - 1 - math.floor(math.log10(abs(value))))
