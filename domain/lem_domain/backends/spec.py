"""The descriptor of a backend: every fact of an engine that another part of the service needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from pydantic.types import JsonValue

from lem_domain.config.model_base import ConfigModel, Rule


class LaunchMode(StrEnum):
    """How the ranks of an attempt are started."""

    DIRECT = "direct"
    """The daemon starts every rank."""
    ACCELERATE = "accelerate"
    """`accelerate launch` starts several ranks. The daemon starts a single one, where accelerate would add nothing."""
    ENGINE_MANAGED = "engine_managed"
    """The daemon starts one rank, and the engine starts its own worker processes."""


@dataclass(frozen=True)
class BackendSpec:
    """One backend. A module of `lem_domain.backends` offers it as `SPEC`.

    Apart from it, pyproject.toml lists the extra of a backend, and `lemctl doctor` checks PyTorch only.
    """

    name: str
    """Value of `backend`, and the key of the section."""
    title: str
    """The engine's name in sentences."""
    section: type[ConfigModel]
    implementation: str
    """The class that a rank loads, as `module:class`."""
    extra: str
    """The optional dependencies of llm-energy-measurement that install the engine."""
    install_hint: str
    """Completes "… is not installed here; " with the remedy."""
    sequences_key: str
    """The key of the section that limits how many sequences an engine works on at once."""
    modules: tuple[str, ...] = ()
    """Python modules that are all present where the engine is installed; empty for no engine."""
    distributions: tuple[str, ...] = ()
    """Packages of which a worker with the engine has at least one."""
    is_continuous: bool = False
    """Requests join and leave the engine's batch at any time; otherwise a batch runs in lockstep."""
    launch_mode: LaunchMode = LaunchMode.DIRECT
    image: str | None = None
    """The Dockerfile of a worker with this engine."""
    processes: Callable[[Any], int] = lambda _: 1
    """The number of ranks that a section asks for."""
    assistant_model: Callable[[Any], str | None] = lambda _: None
    """The model that drafts for the measured one, which a section names."""
    rules: tuple[Rule, ...] = ()
    """Rules between the section and the rest of the experiment; they apply where the backend is chosen."""
    presets: Mapping[str, Mapping[str, JsonValue]] = field(default_factory=dict)
    """Values of the section under the name of a built-in preset."""
    loads_adapters: bool = False
    """Puts `model.adapter` into the model."""
    scores_quality: bool = False
    """Measures `quality`: implements `ScoringBackend`."""
    is_simulated: bool = False
    """Has no engine: its model, devices and power are simulated."""
