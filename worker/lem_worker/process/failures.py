"""What an exception in a rank means: the reason the attempt ends for, and one sentence."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import NamedTuple

from lem_domain.errors import LemError
from lem_domain.evidence.streams import PhaseName
from lem_domain.states import FailureReason
from lem_worker.process.spool import DISK_IS_FULL, SpoolError

_MAX_MESSAGE = 2000
_SIGNS_OF_A_DRIVER = ("No CUDA GPUs are available", "CUDA driver", "NVIDIA driver", "CUDA unknown error")
"""From what PyTorch says when CUDA can't be initialised at all; there are no exception classes for it."""

_SIGNS_OF_NO_MEMORY = ("DefaultCPUAllocator: can't allocate memory", "CUDA out of memory", "CUDA_ERROR_OUT_OF_MEMORY")
"""From what engines say in a plain RuntimeError; there are no exception classes for it."""


class BackendUnavailable(LemError):
    """The engine is not installed here."""


class OptionRefused(LemError):
    """The engine does not take an option that the configuration asks for."""


class EngineRefused(LemError):
    """The engine can't be brought up as asked, for a reason that whoever drives it has found out."""

    def __init__(self, reason: FailureReason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Failure(NamedTuple):
    """Why the attempt ends."""

    reason: FailureReason
    message: str


def failure_of(error: BaseException, phase: PhaseName) -> Failure:
    """The reason and the sentence for an exception that was raised in `phase`."""
    if isinstance(error, LemError):
        sentence = str(error)
    else:
        sentence = "; caused by ".join(f"{type(one).__name__}: {one}" for one in _chain(error))
    return Failure(_reason(error, phase), sentence[:_MAX_MESSAGE])


def _reason(error: BaseException, phase: PhaseName) -> FailureReason:
    if isinstance(error, EngineRefused):
        return error.reason
    if any(is_out_of_memory(one) for one in _chain(error)):
        return FailureReason.OUT_OF_MEMORY
    if isinstance(error, OptionRefused):
        return FailureReason.NOT_AS_REQUESTED
    if isinstance(error, BackendUnavailable) or _is_of_the_machine(error):
        return FailureReason.BACKEND_UNAVAILABLE
    if phase in {PhaseName.LOAD, PhaseName.COMPILE}:
        return FailureReason.BACKEND_INITIALISATION
    return FailureReason.INFERENCE


def _is_of_the_machine(error: BaseException) -> bool:
    """Whether a disk or a driver is at fault, and any other run would fail here too."""
    if isinstance(error, SpoolError) or (isinstance(error, OSError) and error.errno in DISK_IS_FULL):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS_OF_A_DRIVER)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on the host or on a device."""
    if isinstance(error, MemoryError):
        return True
    torch = sys.modules.get("torch")  # not imported here: most backends run without it
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS_OF_NO_MEMORY)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and what it was raised from: an engine's own processes tell theirs inside another."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__
