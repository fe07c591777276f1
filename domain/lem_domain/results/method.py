"""The versions of the formulas that results are computed by."""

from __future__ import annotations

from enum import StrEnum
from typing import Final


class MethodVersion(StrEnum):
    """A version of the formulas in docs/measurement.md; a change to any formula is a new version.

    Every version can be computed from the same raw evidence at any time. The order is that of their introduction.
    """

    M1 = "m1"
    M2 = "m2"


DEFAULT_METHOD: Final = MethodVersion.M2
"""The version of a result where none is requested."""
