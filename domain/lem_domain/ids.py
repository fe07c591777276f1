"""Public identifiers: the prefix of a kind, an underscore and the 32 hexadecimal digits of a UUID."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated
from uuid import UUID

from pydantic import BeforeValidator, StringConstraints


class IdKind(StrEnum):
    """The kind of an identified object; the value is the prefix."""

    CAMPAIGN = "cmp"
    EXPERIMENT = "exp"
    RUN = "run"
    ATTEMPT = "att"
    WORKER = "wrk"
    TOKEN = "tok"  # noqa: S105 - a prefix, not a secret


def format_id(kind: IdKind, value: UUID) -> str:
    """Return the public form of an identifier, for example `run_0199…`."""
    return f"{kind.value}_{value.hex}"


def _formats(kind: IdKind) -> BeforeValidator:
    return BeforeValidator(lambda value: format_id(kind, value) if isinstance(value, UUID) else value)


# Each accepts the UUID too, as the database stores it.
CampaignId = Annotated[str, StringConstraints(pattern=r"^cmp_[0-9a-f]{32}$"), _formats(IdKind.CAMPAIGN)]
ExperimentId = Annotated[str, StringConstraints(pattern=r"^exp_[0-9a-f]{32}$"), _formats(IdKind.EXPERIMENT)]
RunId = Annotated[str, StringConstraints(pattern=r"^run_[0-9a-f]{32}$"), _formats(IdKind.RUN)]
AttemptId = Annotated[str, StringConstraints(pattern=r"^att_[0-9a-f]{32}$"), _formats(IdKind.ATTEMPT)]
WorkerId = Annotated[str, StringConstraints(pattern=r"^wrk_[0-9a-f]{32}$"), _formats(IdKind.WORKER)]
TokenId = Annotated[str, StringConstraints(pattern=r"^tok_[0-9a-f]{32}$"), _formats(IdKind.TOKEN)]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
"""A SHA-256 digest as 64 lower-case hexadecimal digits."""


def parse_id(kind: IdKind, text: str) -> UUID:
    """Return the UUID of a public identifier.

    Raises:
        ValueError: the text is not an identifier of this kind.
    """
    prefix, separator, digits = text.partition("_")
    if prefix != kind.value or not separator or len(digits) != 32:
        raise ValueError(f"{text!r} is not a {kind.name.lower()} id; one looks like {kind.value}_ and 32 hex digits.")
    return UUID(hex=digits)
