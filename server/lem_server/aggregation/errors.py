"""Errors of aggregation.

AggregationError
  EvidenceMissing   parts of the evidence are missing
  EvidenceCorrupt   a stored chunk changed
  EvidenceInvalid   the evidence is complete but contradicts itself
  CalibrationRefused   a meter's log can't calibrate a device of the run
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar, Literal, NamedTuple

from lem_domain.errors import LemError, ProblemCode


class MissingPart(NamedTuple):
    """A missing part of the evidence; `seqs` only if chunks of a stream are missing."""

    what: Literal["completion_marker", "stream", "chunks"]
    process: str
    stream: str | None = None
    seqs: tuple[int, ...] = ()

    def __str__(self) -> str:
        if self.what == "completion_marker":
            return f"the completion marker of {self.process}"
        if self.what == "stream":
            return f"the whole stream {self.stream} of {self.process}"
        return f"{self.stream} of {self.process}: chunks {ranges_text(self.seqs)}"


class AggregationError(LemError):
    """Root of the errors for which aggregation refuses evidence; `code` is that of the answer."""

    code: ClassVar[ProblemCode]


class EvidenceMissing(AggregationError):
    """Parts of the evidence are missing; `missing` lists all of them."""

    code = ProblemCode.EVIDENCE_MISSING

    def __init__(self, missing: Iterable[MissingPart]) -> None:
        self.missing = tuple(missing)
        super().__init__(
            f"evidence is missing ({'; '.join(map(str, self.missing))}); let the worker send it again, or request "
            "allow_partial to get a result that is marked invalid."
        )

    # Aggregation runs in a subprocess: pickle rebuilds the exception from these arguments, not from its text.
    def __reduce__(self) -> tuple[type[EvidenceMissing], tuple[tuple[MissingPart, ...]]]:
        return type(self), (self.missing,)


class EvidenceCorrupt(AggregationError):
    """A stored chunk differs from the one that was acknowledged."""

    code = ProblemCode.EVIDENCE_CORRUPT

    def __init__(self, process: str, stream: str, seq: int) -> None:
        self.process, self.stream, self.seq = process, stream, seq
        super().__init__(
            f"chunk {seq} of {stream} of {process} is not what was recorded (its SHA-256 differs); restore it from a "
            "backup or run the experiment again."
        )

    def __reduce__(self) -> tuple[type[EvidenceCorrupt], tuple[str, str, int]]:
        return type(self), (self.process, self.stream, self.seq)


class EvidenceInvalid(AggregationError):
    """The evidence is complete but contradicts itself, for example a last token before the first."""

    code = ProblemCode.EVIDENCE_INVALID


class CalibrationRefused(AggregationError):
    """A meter's log can't calibrate a device of the run; the text says why and what to do."""

    code = ProblemCode.VALIDATION


def ranges_text(numbers: Iterable[int]) -> str:
    """Format numbers with successive ones joined, for example `0, 3-5`."""
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
