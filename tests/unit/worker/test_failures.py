"""What an exception in a rank means."""

from __future__ import annotations

import errno

import pytest

from lem_domain.evidence.streams import PhaseName
from lem_domain.states import FailureReason
from lem_worker.process.failures import BackendUnavailable, OptionRefused, failure_of
from lem_worker.process.spool import SpoolError
from lem_worker.rank.prompts import PromptRefused


@pytest.mark.parametrize(
    ("error", "in_load", "in_measure"),
    [
        (ValueError("odd"), FailureReason.BACKEND_INITIALISATION, FailureReason.INFERENCE),
        (PromptRefused("too long."), FailureReason.BACKEND_INITIALISATION, FailureReason.INFERENCE),
        (OSError("no such model on the hub"), FailureReason.BACKEND_INITIALISATION, FailureReason.INFERENCE),
        (MemoryError(), FailureReason.OUT_OF_MEMORY, FailureReason.OUT_OF_MEMORY),
        (RuntimeError("CUDA out of memory. Tried"), FailureReason.OUT_OF_MEMORY, FailureReason.OUT_OF_MEMORY),
        (OptionRefused("no such option."), FailureReason.NOT_AS_REQUESTED, FailureReason.NOT_AS_REQUESTED),
        # The machine's, in whichever phase it shows.
        *(
            (error, FailureReason.BACKEND_UNAVAILABLE, FailureReason.BACKEND_UNAVAILABLE)
            for error in (
                BackendUnavailable("no torch."),
                SpoolError("the spool can't write."),
                OSError(errno.ENOSPC, "No space left on device"),
                OSError(errno.EDQUOT, "Disk quota exceeded"),
                RuntimeError("No CUDA GPUs are available"),
                RuntimeError("Found no NVIDIA driver on your system."),
            )
        ),
    ],
    ids=repr,
)
def test_an_exception_has_its_reason(error: Exception, in_load: FailureReason, in_measure: FailureReason) -> None:
    assert failure_of(error, PhaseName.LOAD).reason is in_load
    assert failure_of(error, PhaseName.MEASURE).reason is in_measure


def test_an_error_of_lem_is_its_sentence_and_another_names_its_kind() -> None:
    assert failure_of(PromptRefused("prompt 3 is too long."), PhaseName.LOAD).message == "prompt 3 is too long."
    assert failure_of(KeyError("x"), PhaseName.LOAD).message == "KeyError: 'x'"
    assert len(failure_of(ValueError("x" * 10_000), PhaseName.LOAD).message) == 2000


def test_an_error_that_was_raised_from_another_reports_both() -> None:
    error = RuntimeError("the engine's process returned an error")
    error.__cause__ = MemoryError("none left")
    reason, message = failure_of(error, PhaseName.LOAD)
    assert reason is FailureReason.OUT_OF_MEMORY
    assert message == "RuntimeError: the engine's process returned an error; caused by MemoryError: none left"
