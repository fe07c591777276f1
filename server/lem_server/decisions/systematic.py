"""Widens a comparison of energies by what sensors and samples leave open (docs/comparing.md, What a sensor adds).

The same sensors read both: their gain is one unknown factor, which cancels in a ratio, and their offset one unknown
power, the same in both. Other sensors have independent gains and offsets, whose worst case counts. What the samples
leave open is independent from cycle to cycle and is added in quadrature.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from lem_domain.wire.decisions import ConfidenceInterval, SystematicError
from lem_server.decisions.contrasts import Contrast
from lem_server.decisions.facts import EnergyReading
from lem_server.decisions.intervals import CONFIDENCE, FloatArray

ContrastOf = Callable[[FloatArray, FloatArray], Contrast]


class Widened(NamedTuple):
    """A difference with all that is open in it.

    The true one is any of `contrasts` (one per offset that the sensor may have), at most `below` smaller or `above`
    larger, times 1 ± `gain`.
    """

    contrasts: tuple[Contrast, ...]
    below: float = 0.0
    above: float = 0.0
    gain: float = 0.0
    sampling: float = 0.0
    """The part of `below` and `above` that more cycles reduce."""

    def interval(self, confidence: float = CONFIDENCE) -> ConfidenceInterval:
        """Return the interval that holds the difference for every offset and gain."""
        found = [contrast.interval(confidence) for contrast in self.contrasts]
        low, high = min(one.low for one in found) - self.below, max(one.high for one in found) + self.above
        return ConfidenceInterval(low=low - self.gain * abs(low), high=high + self.gain * abs(high))

    def p_above(self, limit: float) -> float:
        """Return the one-sided p value of “the difference is at most `limit`” for the least favourable error."""
        least = limit / (1 - math.copysign(self.gain, limit)) + self.below
        return max(contrast.p_above(least) for contrast in self.contrasts)

    def p_below(self, limit: float) -> float:
        """Return the one-sided p value of “the difference is at least `limit`” for the least favourable error."""
        most = limit / (1 + math.copysign(self.gain, limit)) - self.above
        return max(contrast.p_below(most) for contrast in self.contrasts)

    @property
    def shifts(self) -> ConfidenceInterval:
        """By how much the sensor's part may move the estimate, down and up."""
        means = [contrast.mean - self.contrasts[0].mean for contrast in self.contrasts]
        scaled = self.gain * abs(self.contrasts[0].mean)
        return ConfidenceInterval(
            low=min(means) - (self.below - self.sampling) - scaled,
            high=max(means) + (self.above - self.sampling) + scaled,
        )


class Side(NamedTuple):
    """The values of one experiment, and the energies that they are computed from (as many, or none)."""

    values: FloatArray
    energies: Sequence[EnergyReading]


class NotBounded(Exception):
    """The sensors leave so much open that there is no comparison; the text says why."""


def widen(
    reference: Side, candidate: Side, contrast: ContrastOf, *, ratio: bool, same_sensor: bool
) -> tuple[Widened, SystematicError | None]:
    """Return the contrast of two experiments (of logarithms with `ratio`) with what the energy leaves open.

    Raises:
        NotBounded: an offset may be as large as the power, or the sensors differ and one has no published accuracy.
    """
    plain = contrast(_scaled(reference.values, ratio), _scaled(candidate.values, ratio))
    sides = (reference, candidate)
    if any(len(side.energies) < len(side.values) for side in sides):
        return Widened((plain,)), None
    unpublished = any(one.offset_w is None for side in sides for one in side.energies)
    sampling = _logarithmic(math.hypot(*(_sampling(side, ratio=ratio) for side in sides)), ratio=ratio)
    apart = _logarithmic(sum(_apart(side, ratio=ratio) for side in sides), ratio=ratio)
    down = up = sampling + apart
    shifted: tuple[Contrast, ...] = ()
    gain = 0.0
    if same_sensor:
        offset_w = max(one.offset_w or 0.0 for side in sides for one in side.energies)
        if offset_w:
            shifted = tuple(
                contrast(*(_scaled(side.values, ratio) + _offset(side, by_w, ratio=ratio) for side in sides))
                for by_w in (-offset_w, offset_w)
            )
        gain = 0.0 if ratio else max(one.gain or 0.0 for side in sides for one in side.energies)
    else:
        if unpublished or any(one.gain is None for side in sides for one in side.energies):
            raise NotBounded("the two were measured by different sensors, and the accuracy of one is not published")
        down += _worst(reference, 1, ratio=ratio) - _worst(candidate, -1, ratio=ratio)
        up += _worst(candidate, 1, ratio=ratio) - _worst(reference, -1, ratio=ratio)
    found = Widened((plain, *shifted), down, up, gain, sampling)
    sensor = found.shifts
    if ratio:
        sensor = ConfidenceInterval(low=math.expm1(sensor.low), high=math.expm1(sensor.high))
        sampling = math.expm1(sampling)
    return found, SystematicError(same_sensor=same_sensor, sensor=sensor, sampling=sampling, unpublished=unpublished)


def _scaled(values: FloatArray, ratio: bool) -> FloatArray:
    found: FloatArray = np.log(values) if ratio else values
    return found


def _offset(side: Side, by_w: float, *, ratio: bool) -> FloatArray:
    """Return by how much each value (its logarithm) moves if the power of the sensor is `by_w` higher."""
    shares = np.asarray([by_w * one.seconds / one.joules if one.joules else 0.0 for one in side.energies])
    if not ratio:
        found: FloatArray = shares * side.values
        return found
    if bool((np.abs(shares) >= 1).any()):
        raise NotBounded("the offset of the sensor may be as large as the power")
    logs: FloatArray = np.log1p(shares) * np.asarray([one.power for one in side.energies])
    return logs


def _worst(side: Side, sign: int, *, ratio: bool) -> float:
    """Return the mean shift of the values (their logarithms) to their largest (1) or smallest (−1)."""
    shares = np.asarray(
        [(one.gain or 0.0) + (one.offset_w or 0.0) * one.seconds / abs(one.joules or 1.0) for one in side.energies]
    )
    if not ratio:
        return float((sign * shares * np.abs(side.values)).mean())
    if bool((shares >= 1).any()):
        raise NotBounded("the error of the sensor may be as large as the energy")
    powers = np.asarray([one.power for one in side.energies])
    return float((powers * np.log1p(sign * powers * shares)).mean())


def _sampling(side: Side, *, ratio: bool) -> float:
    """Return what the samples leave open in the mean of independent cycles: the root of the sum of squares / n."""
    return math.hypot(*_shares(side, [one.open_j for one in side.energies], ratio=ratio)) / len(side.values)


def _apart(side: Side, *, ratio: bool) -> float:
    """Return by how much counter and integral disagree, which is the same in every cycle at worst: the mean."""
    return math.fsum(_shares(side, [one.apart_j for one in side.energies], ratio=ratio)) / len(side.values)


def _shares(side: Side, joules: Sequence[float], *, ratio: bool) -> list[float]:
    """Return energies relative to those of the cycles, or in the unit of the metric."""
    scale = np.ones(len(joules)) if ratio else np.abs(side.values)
    return [
        each / abs(one.joules) * float(by) if one.joules else 0.0
        for each, one, by in zip(joules, side.energies, scale, strict=True)
    ]


def _logarithmic(share: float, *, ratio: bool) -> float:
    if not ratio:
        return share
    if share >= 1:
        raise NotBounded("the samples leave the whole energy open")
    return -math.log1p(-share)
