"""The error of a model that is not available."""

from __future__ import annotations

from lem_domain.errors import LemError


class ModelNotFound(LemError):
    """The model is not available; the message says what to do."""
