"""Why evidence can't be aggregated: a chunk is missing, a byte changed, or the numbers contradict each other."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple

from lem_domain.errors import LemError


class MissingPart(NamedTuple):
    """One thing that should be there and isn't; `seqs` only where chunks of a stream are missing."""

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
    """Root of what aggregation refuses."""


class EvidenceMissing(AggregationError):
    """Parts of the evidence are not there; `missing` lists every one of them."""

    def __init__(self, missing: Iterable[MissingPart]) -> None:
        self.missing = tuple(missing)
        super().__init__(
            f"evidence is missing ({'; '.join(map(str, self.missing))}); let the worker send it again, or ask for "
            "allow_partial to compute a result that is marked invalid."
        )

    # Aggregation may run in another process; an exception is rebuilt there from these, not from its text.
    def __reduce__(self) -> tuple[type[EvidenceMissing], tuple[tuple[MissingPart, ...]]]:
        return type(self), (self.missing,)


class EvidenceCorrupt(AggregationError):
    """A stored chunk is not the one that was acknowledged."""

    def __init__(self, process: str, stream: str, seq: int) -> None:
        self.process, self.stream, self.seq = process, stream, seq
        super().__init__(
            f"chunk {seq} of {stream} of {process} is not what was recorded (its SHA-256 differs); restore it from a "
            "backup or run the experiment again."
        )

    def __reduce__(self) -> tuple[type[EvidenceCorrupt], tuple[str, str, int]]:
        return type(self), (self.process, self.stream, self.seq)


class EvidenceInvalid(AggregationError):
    """The evidence is whole but can't be true, for example a last token before the first."""


def ranges_text(numbers: Iterable[int]) -> str:
    """Numbers with successive ones joined, for example `0, 3-5`."""
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
