"""What an exception in a rank means: the reason the attempt ends for, and one sentence."""

from __future__ import annotations

import sys
from typing import NamedTuple

from lem_domain.errors import LemError
from lem_domain.evidence import PhaseName
from lem_domain.states import FailureReason

_MAX_MESSAGE = 2000


class BackendUnavailable(LemError):
    """The engine is not installed here."""


class Failure(NamedTuple):
    """Why the attempt ends."""

    reason: FailureReason
    message: str


def failure_of(error: BaseException, phase: PhaseName) -> Failure:
    """The reason and the sentence for an exception that was raised in `phase`."""
    sentence = str(error) if isinstance(error, LemError) else f"{type(error).__name__}: {error}"
    return Failure(_reason(error, phase), sentence[:_MAX_MESSAGE])


def _reason(error: BaseException, phase: PhaseName) -> FailureReason:
    if _is_out_of_memory(error):
        return FailureReason.OUT_OF_MEMORY
    if isinstance(error, BackendUnavailable):
        return FailureReason.BACKEND_UNAVAILABLE
    if phase is PhaseName.LOAD:
        return FailureReason.BACKEND_INITIALISATION
    return FailureReason.INFERENCE


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError):
        return True
    torch = sys.modules.get("torch")  # not imported here: most backends run without it
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
        return True
    # PyTorch's CPU allocator has no exception class of its own.
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator: can't allocate memory" in str(error)
