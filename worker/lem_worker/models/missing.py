"""The error of a model that can't be had."""

from __future__ import annotations

from lem_domain.errors import LemError


class ModelNotFound(LemError):
    """The model can't be had; says what to do."""
