"""Formats of a campaign's results. A module in this folder is a format of its name, with a function `render`."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING, TypeAlias

from lem_domain.wire.campaigns import CampaignResults

if TYPE_CHECKING:
    from rich.console import RenderableType

Renderer: TypeAlias = "Callable[[CampaignResults], str | RenderableType]"
"""Returns the exact text to write, or what a terminal of any width can lay out."""


def format_names() -> tuple[str, ...]:
    """Return the names of the formats, in alphabetical order."""
    return tuple(module.name for module in iter_modules(__path__))


def renderer(name: str) -> Renderer:
    """Return the renderer of a format."""
    render: Renderer = import_module(f"{__name__}.{name}").render
    return render
