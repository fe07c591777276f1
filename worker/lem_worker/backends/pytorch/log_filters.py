"""Filters that keep libraries' irrelevant messages out of a run's log."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

_ENVIRONMENT = {
    "TOKENIZERS_PARALLELISM": "false",  # the tokenizer's threads would compete with the measured ones
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}
_TORCHAO_LOGGERS = ("torchao", "torch.utils._pytree")
"""Loggers of torchao's warnings about kernels for other GPUs, and of torch's about torchao."""


def set_environment() -> None:
    """Set the variables that the user has not set."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)


@contextmanager
def importing(*, torchao_is_asked_for: bool) -> Iterator[None]:
    """Silence torchao's import warnings, unless the run asks for torchao.

    transformers imports torchao wherever it is installed, because a checkpoint may need it.
    """
    if torchao_is_asked_for:
        yield
        return
    loggers = [logging.getLogger(name) for name in _TORCHAO_LOGGERS]
    for logger in loggers:
        logger.addFilter(_nothing)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(_nothing)


def log_once(logger_name: str) -> None:
    """Drop repeated messages of a logger; bitsandbytes repeats its warnings for every product of every layer."""
    seen: set[str] = set()

    def is_new(record: logging.LogRecord) -> bool:
        message = record.getMessage()
        return message not in seen and not seen.add(message)  # type: ignore[func-returns-value]

    logging.getLogger(logger_name).addFilter(is_new)


def _nothing(_record: logging.LogRecord) -> bool:
    return False
