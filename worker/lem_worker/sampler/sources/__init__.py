"""The energy sources, one module each. A module with a constant `SPEC` in this folder is a source."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Sequence

from lem_domain.backends.registry import backend_spec
from lem_domain.config.experiment import ExperimentConfig
from lem_domain.wire.workers import Device, DeviceKind
from lem_worker.sampler.energy_source import Coverage, SourceSpec


def all_sources() -> dict[str, SourceSpec]:
    """Import every module of this folder and return their specs by name, in alphabetical order."""
    names = (module.name for module in pkgutil.iter_modules(__path__))
    return {name: importlib.import_module(f"{__name__}.{name}").SPEC for name in sorted(names)}


def plan_sources(config: ExperimentConfig, devices: Sequence[Device]) -> tuple[SourceSpec, ...]:
    """Select the sources to open, in order.

    Those that `energy.sources` names, or with `auto` all that cover the leased devices and the host, substitutes last.
    """
    if not config.record.power:
        return ()
    specs = all_sources()
    if config.energy.sources != "auto":
        return tuple(specs[name]._replace(instead_of=None) for name in config.energy.sources)
    if backend_spec(config.backend).is_simulated:
        covered = {Coverage.SIMULATED_DEVICES}
    elif any(device.kind is DeviceKind.GPU for device in devices):
        covered = {Coverage.GPUS, Coverage.HOST}
    else:
        covered = {Coverage.HOST}
    # A substitute is opened after its original, when it is known whether that one could be opened.
    return tuple(
        sorted(
            (spec for spec in specs.values() if spec.covers in covered), key=lambda spec: spec.instead_of is not None
        )
    )
