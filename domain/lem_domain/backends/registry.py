"""All backends, found by the modules of this package."""

from __future__ import annotations

from collections.abc import Collection
from enum import StrEnum
from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Any, Final

from lem_domain import backends
from lem_domain.backends.spec import BackendSpec
from lem_domain.config.model_base import Rule


def _discover() -> tuple[BackendSpec, ...]:
    modules = (import_module(f"{backends.__name__}.{one.name}") for one in iter_modules(backends.__path__))
    specs = [module.SPEC for module in modules if hasattr(module, "SPEC")]
    # This order is that of every listing: engines by name, then the simulated backend.
    return tuple(sorted(specs, key=lambda spec: (spec.is_simulated, spec.name)))


BACKENDS: Final = _discover()
_BY_NAME: Final = {spec.name: spec for spec in BACKENDS}

if TYPE_CHECKING:

    class BackendName(StrEnum):
        """The engines. Its members are the registered backends, which a type checker can't know."""
else:
    BackendName = StrEnum("BackendName", {spec.name.upper(): spec.name for spec in BACKENDS}, module=__name__)
    BackendName.__doc__ = "The engines. A backend joins this list when its worker exists."


def backend_spec(name: str) -> BackendSpec:
    """The descriptor of a backend, by its name."""
    return _BY_NAME[name]


def has_engine(backend: str, versions: Collection[str]) -> bool:
    """Whether a worker with these packages has the backend's engine."""
    needed = _BY_NAME[backend].distributions
    return not needed or any(name in versions for name in needed)


def engine_distributions() -> frozenset[str]:
    """The packages of all engines, whose versions a worker reports."""
    return frozenset(name for spec in BACKENDS for name in spec.distributions)


def backend_rules() -> tuple[Rule, ...]:
    """The rules of all backends; each applies only where its backend is chosen."""
    return tuple(_where_chosen(spec.name, rule) for spec in BACKENDS for rule in spec.rules)


def _where_chosen(name: str, rule: Rule) -> Rule:
    def check(config: Any) -> str | None:
        return rule(config) if config.backend == name else None

    return check
