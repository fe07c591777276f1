"""The reason of a failed vLLM load, from its message: too little memory, a bad checkpoint, or a rejected option.

vLLM has few exception classes: most failures of a load are a ValueError, and the error of a worker process arrives here
as a sentence that points to the log.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

import pydantic
from safetensors import SafetensorError
from vllm.exceptions import VLLMError

from lem_domain.evidence.streams import rank_name
from lem_domain.states import FailureReason
from lem_worker.process.failures import EngineRefused, is_out_of_memory
from lem_worker.process.protocol import RankJob

_MEMORY = (
    "Available memory on node",
    "No available memory for the cache blocks",
    "larger than the maximum number of tokens that can be stored in KV cache",
    "is larger than the available KV cache memory",
    "is less than desired GPU memory utilization",
    "less than desired CPU memory utilization",
    "out of memory",
    "DefaultCPUAllocator: can't allocate memory",
)
"""Parts of vLLM's ValueErrors about the KV cache (0.32) and of torch's messages; a worker's error is text only."""

_CHECKPOINT = (
    "Cannot find any model weights",
    "weights were not initialized from checkpoint",
    "There is no module or parameter named",
    "size mismatch",
    "Error while deserializing header",
    "Can't load the configuration",
    "Unrecognized model in",
    "is not a valid JSON",
    "does not appear to have a file named",
    "Can't load tokenizer",
    "Couldn't instantiate the backend tokenizer",
)
_POINTS_TO_LOG = re.compile(r"root cause|see (the )?stack trace|initialization failed", re.IGNORECASE)
_LOG_LINE = re.compile(r"^.*?\b(?:ERROR|CRITICAL)\b[^\]]*\]\s?")
_LAST_LINES = 6


@contextlib.contextmanager
def explained(job: RankJob) -> Iterator[None]:
    """Convert an error of the load into one with a reason, with the log's last errors where it only points there.

    Raises:
        EngineRefused: in place of the original error.
    """
    try:
        yield
    except (MemoryError, ImportError, EngineRefused):
        raise
    except Exception as error:
        message = _message(error, Path(job.spool) / f"{rank_name(job.rank)}.log")
        raise EngineRefused(_reason(error, message), f"vLLM can't load the model: {message}") from error


def _reason(error: Exception, message: str) -> FailureReason:
    if is_out_of_memory(error) or any(sign in message for sign in _MEMORY):
        return FailureReason.OUT_OF_MEMORY
    if isinstance(error, OSError | SafetensorError) or any(sign in message for sign in _CHECKPOINT):
        return FailureReason.BACKEND_INITIALISATION
    # The remaining errors of these classes are options that the engine, its build or the model rejects.
    if isinstance(error, pydantic.ValidationError | VLLMError | ValueError | NotImplementedError | TypeError):
        return FailureReason.NOT_AS_REQUESTED
    return FailureReason.BACKEND_INITIALISATION


def _message(error: Exception, log: Path) -> str:
    """The error's text, followed by the last errors of the log where the text only points there."""
    text = _plain(error)
    if not _POINTS_TO_LOG.search(text):
        return text
    with contextlib.suppress(OSError):
        lines = log.read_text(errors="replace")[-64_000:].splitlines()
        errors = [_LOG_LINE.sub("", line) for line in lines if _LOG_LINE.match(line)]
        named = [line for line in errors if re.match(r"\s*[\w.]*(Error|Exception|Refused)\b", line)]
        if last := (named or errors)[-_LAST_LINES:]:
            return f"{text}\n" + "\n".join(dict.fromkeys(line.strip() for line in last))
    return text


def _plain(error: Exception) -> str:
    """The error as text; of a pydantic error without links and input."""
    if isinstance(error, pydantic.ValidationError):
        return "; ".join(one["msg"].removeprefix("Value error, ") for one in error.errors(include_url=False))
    return f"{type(error).__name__}: {error}"
