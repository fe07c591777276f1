"""The part of modelled energy that its model takes as constant, whatever the load."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from lem_domain.results.energy import NOT_DIVIDED
from lem_domain.results.figures import EnergyFigure, EnergyMethod
from lem_server.aggregation.energy.meters import total_energy

MODELLED_AS_CONSTANT = "dram"
"""Domains of this name: CodeCarbon 3 models memory by the number of its modules, 5 W each on x86 and 1.5 W on ARM
(external/ram.py), and not by its use. Its package follows the load, over a floor of a tenth of the rated power."""


class DividedEnergy(NamedTuple):
    """The constants of a model, the rest, and the names of the constant parts; each figure may be null with a reason.

    The rest has the method and bound of the parts that are left, so that it may be measured.
    """

    constant: EnergyFigure
    rest: EnergyFigure
    constant_parts: tuple[str, ...] = ()

    @classmethod
    def absent(cls, reason: str) -> DividedEnergy:
        """No figures."""
        nothing = EnergyFigure(joules=None, reason=reason)
        return cls(nothing, nothing)

    @classmethod
    def of_m1(cls) -> DividedEnergy:
        """The parts of a result by method `m1`, which does not divide them."""
        return cls.absent(NOT_DIVIDED)


def without_model_constant(parts: Mapping[str, EnergyFigure], total: EnergyFigure) -> DividedEnergy:
    """Divide the job's energy, the sum over `parts`, into constants of a model and the rest."""
    if total.joules is None:
        return DividedEnergy.absent(str(total.reason))
    constant = {name: part for name, part in parts.items() if is_model_constant(name, part)}
    if not constant:
        return DividedEnergy.absent("no part of the energy is a constant of a model")
    rest = {name: part for name, part in parts.items() if name not in constant}
    none = "all of the energy is a constant of a model"
    return DividedEnergy(total_energy(constant, none), total_energy(rest, none), tuple(constant))


def is_model_constant(name: str, part: EnergyFigure) -> bool:
    """Return whether the figure of a host domain is a constant of the installed hardware."""
    return name.startswith(MODELLED_AS_CONSTANT) and part.method is EnergyMethod.MODELLED
