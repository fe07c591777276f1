"""What libraries are told so that a run's log holds what is about the run."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

_ENVIRONMENT = {
    "TOKENIZERS_PARALLELISM": "false",  # threads of the tokenizer would compete with the measured ones
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}
_SAID_OF_TORCHAO = ("torchao", "torch.utils._pytree")
"""The loggers on which torchao's import complains about kernels for other GPUs, and torch about torchao."""


def set_environment() -> None:
    """What the user has set stays."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)


@contextmanager
def importing(*, torchao_is_asked_for: bool) -> Iterator[None]:
    """Transformers imports torchao wherever it is installed, because a checkpoint may need it; its complaints are
    told only where the run asks for it."""
    if torchao_is_asked_for:
        yield
        return
    loggers = [logging.getLogger(name) for name in _SAID_OF_TORCHAO]
    for logger in loggers:
        logger.addFilter(_nothing)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(_nothing)


def say_once(logger_name: str) -> None:
    """bitsandbytes says the same for every product of every layer, which would bury the run's log."""
    said: set[str] = set()

    def is_new(record: logging.LogRecord) -> bool:
        message = record.getMessage()
        return message not in said and not said.add(message)  # type: ignore[func-returns-value]

    logging.getLogger(logger_name).addFilter(is_new)


def _nothing(_record: logging.LogRecord) -> bool:
    return False
