"""Translation of an exception in a process into the reason and message that end the attempt.

LemError
├── BackendUnavailable   the engine is not installed
├── OptionRefused        the engine rejects an option of the configuration
└── EngineRefused        the engine can't start as requested; has its own reason
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import NamedTuple

from lem_domain.errors import LemError
from lem_domain.evidence.streams import PhaseName
from lem_domain.states import FailureReason
from lem_worker.process.spool import DISK_IS_FULL, SpoolError

_MAX_MESSAGE = 2000
_DRIVER_MESSAGES = ("No CUDA GPUs are available", "CUDA driver", "NVIDIA driver", "CUDA unknown error")
"""PyTorch raises a plain RuntimeError when CUDA can't be initialised; only its message shows the cause."""

_OUT_OF_MEMORY_MESSAGES = (
    "DefaultCPUAllocator: can't allocate memory",
    "CUDA out of memory",
    "CUDA_ERROR_OUT_OF_MEMORY",
)
"""Engines raise a plain RuntimeError in some of these cases; only its message shows the cause."""


class BackendUnavailable(LemError):
    """The engine is not installed here."""


class OptionRefused(LemError):
    """The engine rejects an option of the configuration."""


class EngineRefused(LemError):
    """The engine can't start as requested; the backend has determined the reason."""

    def __init__(self, reason: FailureReason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Failure(NamedTuple):
    """Why the attempt ends."""

    reason: FailureReason
    message: str


def failure_of(error: BaseException, phase: PhaseName) -> Failure:
    """Return reason and message for an exception that was raised in `phase`."""
    if isinstance(error, LemError):
        message = str(error)
    else:
        message = "; caused by ".join(f"{type(one).__name__}: {one}" for one in _chain(error))
    return Failure(_reason(error, phase), message[:_MAX_MESSAGE])


def _reason(error: BaseException, phase: PhaseName) -> FailureReason:
    if isinstance(error, EngineRefused):
        return error.reason
    if any(is_out_of_memory(one) for one in _chain(error)):
        return FailureReason.OUT_OF_MEMORY
    if isinstance(error, OptionRefused):
        return FailureReason.NOT_AS_REQUESTED
    if isinstance(error, BackendUnavailable) or _is_machine_fault(error):
        return FailureReason.BACKEND_UNAVAILABLE
    if phase in {PhaseName.LOAD, PhaseName.COMPILE}:
        return FailureReason.BACKEND_INITIALISATION
    return FailureReason.INFERENCE


def _is_machine_fault(error: BaseException) -> bool:
    """Whether a disk or a driver is at fault, so that any other run would fail here too."""
    if isinstance(error, SpoolError) or (isinstance(error, OSError) and error.errno in DISK_IS_FULL):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _DRIVER_MESSAGES)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on the host or on a device."""
    if isinstance(error, MemoryError):
        return True
    torch = sys.modules.get("torch")  # not imported here: most backends do not need it
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _OUT_OF_MEMORY_MESSAGES)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and its causes: an engine wraps the errors of its subprocesses in others."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__
