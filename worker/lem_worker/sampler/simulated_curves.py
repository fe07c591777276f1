"""Shapes of simulated power with their exact integrals."""

from __future__ import annotations

from lem_domain.backends.simulated import SimulatedPower


def power_w(base_w: float, power: SimulatedPower | None, seconds: float) -> float:
    """Power in W, `seconds` after the beginning."""
    if power is None:
        return base_w
    rise_w = power.peak_w - base_w
    periods = seconds / power.period_s
    match power.shape:
        case "ramp":
            return base_w + rise_w * min(1.0, periods)
        case "sawtooth":
            return base_w + rise_w * (periods % 1.0)
        case "burst":
            return power.peak_w if periods % 1.0 < power.duty else base_w


def energy_j(base_w: float, power: SimulatedPower | None, seconds: float) -> float:
    """The integral of `power_w` in J over the first `seconds`."""
    if power is None:
        return base_w * seconds
    whole, fraction = divmod(seconds / power.period_s, 1.0)
    match power.shape:
        case "ramp":
            # In periods of the full rise: half of the first period, all of the later ones.
            risen = fraction**2 / 2 if whole == 0 else whole + fraction - 0.5
        case "sawtooth":
            risen = whole / 2 + fraction**2 / 2
        case "burst":
            risen = whole * power.duty + min(fraction, power.duty)
    return base_w * seconds + (power.peak_w - base_w) * power.period_s * risen
