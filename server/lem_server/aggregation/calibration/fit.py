"""Fits gain and offset of a power sensor to a meter: reading = gain × true power + offset."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from lem_domain.config.calibration import DeviceCalibration
from lem_domain.gpu_sensors import LEAST_OFFSET_W
from lem_domain.wire.calibration import FittedPart
from lem_server.aggregation.calibration.alignment import (
    FEWEST_PAIRS,
    ClockOffset,
    Pairs,
    hardly_varies_w,
)
from lem_server.aggregation.energy.traces import FloatArray
from lem_server.aggregation.errors import CalibrationRefused
from lem_server.aggregation.linear_trend import student_t

_HUBER = 1.345
"""95 % as efficient as least squares where nothing is off (Holland, Welsch 1977)."""
_MAD = 1.4826
"""Standard deviation of a normal distribution per median absolute deviation."""
_ROUNDS = 30
_LEVELS = 5
_LEAST_NOISE_W = 1e-3
_GAINS = (0.5, 2.0)
_MOST_OFFSET_W = 100.0
_MOST_UNCERTAIN = 0.1
_OTHER_UNIT = 100.0


class FittedLine(NamedTuple):
    """A fitted line, its 95 % half-widths, and what it leaves, in W of readings."""

    gain: float
    offset_w: float
    gain_half: float
    offset_half_w: float
    residual_w: float
    misfit_w: float
    weights: FloatArray
    meter_w: FloatArray


def fitted(pairs: Pairs, clock: ClockOffset, part: FittedPart, model_gain: float) -> FittedLine:
    """Fit the line to the pairs at a displacement of the clocks.

    Weighted least squares with Huber's weights (Huber, Robust Estimation of a Location Parameter, 1964), iterated. The
    variance of a pair is that of the residuals plus the square of what the readings change within the uncertainty of
    the clocks (effective variance: Orear, Am. J. Phys. 50, 1982), so that steps of power decide nothing. The
    half-widths are the sum of: the 95 % interval, its variance robust to heteroscedastic and correlated residuals
    (Newey, West, 1987, with the 1.3 √n lags of Lazarus et al., 2018, and the quantile of Kiefer, Vogelsang, 2005); the
    attenuation by the meter's noise if all of the residual is that (Fuller, Measurement Error Models, 1987); the change
    of the fit at both ends of the clocks' uncertainty; and `misfit_w`, by how much the readings of a part of the range
    are off the line.

    With one of gain and offset fitted, the other is taken as 1 or 0 W, and the half-width of the fitted one has what an
    error of the other by `model_gain` or 5 W changes.

    Raises:
        CalibrationRefused: too few pairs, hardly any variation, or numbers that no sensor has.
    """
    middle = _fit(pairs, clock.seconds, clock.uncertainty_s, part)
    ends = [_fit(pairs, clock.seconds + sign * clock.uncertainty_s, clock.uncertainty_s, part) for sign in (-1, 1)]
    line = middle._replace(
        gain_half=middle.gain_half + max(abs(end.gain - middle.gain) for end in ends),
        offset_half_w=middle.offset_half_w + max(abs(end.offset_w - middle.offset_w) for end in ends),
    )
    mean_w = float(np.average(line.meter_w, weights=line.weights))
    if part == "gain":
        line = line._replace(gain_half=line.gain_half + LEAST_OFFSET_W / mean_w, offset_half_w=LEAST_OFFSET_W)
    elif part == "offset":
        line = line._replace(gain_half=model_gain, offset_half_w=line.offset_half_w + model_gain * mean_w)
    _require_sane(line)
    return line


def _fit(pairs: Pairs, offset_s: float, uncertainty_s: float, part: FittedPart) -> FittedLine:
    shown = pairs.readings_w(offset_s)
    around_s = uncertainty_s + pairs.pair_s / 4
    later, before = (pairs.readings_w(offset_s + sign * around_s) for sign in (1, -1))
    use = np.isfinite(shown)
    if use.sum() < FEWEST_PAIRS:
        raise CalibrationRefused(
            f"log and readings have {int(use.sum())} means of {pairs.pair_s:.3g} s in common; at least {FEWEST_PAIRS} "
            "are needed."
        )
    meter, shown = pairs.meter_w[use], shown[use]
    changes = np.nan_to_num(np.abs(later[use] - before[use]) / 2)
    _require_unit(meter, shown)
    columns = {
        "gain_and_offset": np.column_stack((meter, np.ones_like(meter))),
        "gain": meter[:, None],
        "offset": np.ones((len(meter), 1)),
    }[part]
    wanted = shown - meter if part == "offset" else shown
    noise_w, weights = _spread(shown - np.median(shown)), 1 / (1.0 + changes**2)
    numbers = np.zeros(columns.shape[1])
    for _ in range(_ROUNDS):
        before_numbers = numbers
        root = np.sqrt(weights)
        numbers = np.linalg.lstsq(columns * root[:, None], wanted * root, rcond=None)[0]
        rest = wanted - columns @ numbers
        steady = changes <= np.median(changes)
        noise_w = max(_spread(rest[steady]), _LEAST_NOISE_W)
        sigma = np.sqrt(noise_w**2 + changes**2)
        off = np.maximum(np.abs(rest) / sigma, _HUBER)
        weights = _HUBER / off / sigma**2
        if np.allclose(numbers, before_numbers, rtol=1e-9, atol=1e-9):
            break
    mean_w = float(np.average(meter, weights=weights))
    variance = float(np.average((meter - mean_w) ** 2, weights=weights))
    if part == "gain_and_offset":
        _require_variation(meter, weights)
    errors = _half_widths(columns, rest, weights)
    gain = float(numbers[0]) if part != "offset" else 1.0
    offset_w = {"gain_and_offset": float(numbers[-1]), "gain": 0.0, "offset": float(numbers[-1])}[part]
    gain_half = float(errors[0]) if part != "offset" else 0.0
    offset_half = float(errors[-1]) if part != "gain" else 0.0
    if part == "gain_and_offset":
        lost = noise_w**2 / abs(gain) / variance  # of the gain, if all noise is the meter's
        gain_half, offset_half = gain_half + lost, offset_half + lost * mean_w
    misfit_w, range_w = _misfit_w(meter, rest, weights)
    gain_half += {"gain_and_offset": misfit_w / range_w, "gain": misfit_w / mean_w, "offset": 0.0}[part]
    return FittedLine(gain, offset_w, gain_half, offset_half + misfit_w, noise_w, misfit_w, weights, meter)


def _half_widths(columns: FloatArray, rest: FloatArray, weights: FloatArray) -> FloatArray:
    """Return the 95 % half-widths of a weighted fit, at least those without correlation of the residuals."""
    number = len(rest)
    bread = np.linalg.inv(columns.T @ (columns * weights[:, None]))
    scores = columns * (weights * rest)[:, None]
    alone = scores.T @ scores
    meat = alone.copy()
    lags = min(math.ceil(1.3 * math.sqrt(number)), number // 2)
    for lag in range(1, lags + 1):
        product = scores[lag:].T @ scores[:-lag]
        meat += (1 - lag / (lags + 1)) * (product + product.T)
    factor = number / (number - columns.shape[1])
    variances = [np.diag(bread @ middle @ bread) * factor for middle in (alone, meat)]
    share = lags / number  # the quantile of a t statistic with so many lags (Kiefer, Vogelsang 2005, table 1)
    quantile = max(
        student_t(number - columns.shape[1]), 1.9600 + 2.9694 * share + 0.4160 * share**2 - 0.5324 * share**3
    )
    found: FloatArray = quantile * np.sqrt(np.maximum(*variances))
    return found


def _misfit_w(meter: FloatArray, rest: FloatArray, weights: FloatArray) -> tuple[float, float]:
    """Return the largest weighted mean residual over a fifth of the range of power, beyond its own standard error.

    And that range, from the percentile 5 to 95.
    """
    low, high = np.percentile(meter, [5, 95])
    if high <= low:
        return 0.0, max(1.0, float(high))
    level = np.clip(((meter - low) / (high - low) * _LEVELS).astype(int), 0, _LEVELS - 1)
    found = 0.0
    for one in range(_LEVELS):
        mine = level == one
        if mine.sum() >= _LEVELS:
            mean = float(np.average(rest[mine], weights=weights[mine]))
            error = math.sqrt(float(weights[mine] ** 2 @ rest[mine] ** 2)) / float(weights[mine].sum())
            found = max(found, abs(mean) - error)
    return found, float(high - low)


def _spread(values: FloatArray) -> float:
    return _MAD * float(np.median(np.abs(values - np.median(values))))


def _require_unit(meter: FloatArray, shown: FloatArray) -> None:
    ratio = float(np.median(shown)) / max(float(np.median(meter)), 1e-9)
    if not 1 / _OTHER_UNIT < ratio < _OTHER_UNIT:
        raise CalibrationRefused(
            f"the log has {float(np.median(meter)):.4g} W in the middle where the device reads "
            f"{float(np.median(shown)):.4g} W; check the column, and name its unit (unit)."
        )


def _require_variation(meter: FloatArray, weights: FloatArray) -> None:
    kept = meter[weights >= np.median(weights) / 10]
    low, high = np.percentile(kept, [5, 95])
    if high - low < hardly_varies_w(kept):
        raise CalibrationRefused(
            f"power is between {low:.4g} and {high:.4g} W, too close to separate gain from offset; use a run with "
            "idle and busy times, or fit one of them (fit: gain, or fit: offset)."
        )


def _require_sane(line: FittedLine) -> None:
    if not _GAINS[0] < line.gain < _GAINS[1] or abs(line.offset_w) > _MOST_OFFSET_W:
        raise CalibrationRefused(
            f"the readings would have a gain of {line.gain:.4g} and an offset of {line.offset_w:.4g} W, which no "
            "sensor has; check that the meter measures this device alone, and the unit of the log."
        )
    if line.gain_half > _MOST_UNCERTAIN * line.gain:
        raise CalibrationRefused(
            f"the gain is {line.gain:.4g} ± {line.gain_half:.2g}, too uncertain for a calibration; log more rows, at "
            "powers further apart and each for some seconds."
        )


def entry_of(device: str, line: FittedLine, meter_accuracy: float, source: str) -> DeviceCalibration:
    """Return the configuration's entry: what remains of the error holds the half-widths and the meter's own error."""
    least_gain = line.gain - line.gain_half
    return DeviceCalibration(
        device=device,
        gain=round(line.gain, 5),
        gain_bound=_up(line.gain_half / least_gain + meter_accuracy, 4),
        offset_w=round(line.offset_w, 2),
        offset_bound_w=_up(line.offset_half_w / least_gain, 2),
        source=source,
    )


def _up(value: float, digits: int) -> float:
    scale: float = 10.0**digits
    return round(math.ceil(value * scale) / scale, digits)
