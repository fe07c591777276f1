"""Why a vLLM engine did not come up, from its own words: too little memory, a bad checkpoint, or an option it refuses.

vLLM has few exception classes of its own; most of what goes wrong in a load is a ValueError, and an error of a worker
in a process of its own reaches this one as a sentence that points at the log.
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
"""From vLLM's ValueErrors about the KV cache, and what torch says; a worker's error comes as text alone."""

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
_POINTS_AT_THE_LOG = re.compile(r"root cause|see (the )?stack trace|initialization failed", re.IGNORECASE)
_LOG_LINE = re.compile(r"^.*?\b(?:ERROR|CRITICAL)\b[^\]]*\]\s?")
_LAST_WORDS = 6


@contextlib.contextmanager
def explained(job: RankJob) -> Iterator[None]:
    """Give an error of the load its reason, and the engine's last words where the error has none.

    Raises:
        EngineRefused: instead of whatever was raised.
    """
    try:
        yield
    except (MemoryError, ImportError, EngineRefused):
        raise
    except Exception as error:
        said = _said(error, Path(job.spool) / f"{rank_name(job.rank)}.log")
        raise EngineRefused(_reason(error, said), f"vLLM can't load the model: {said}") from error


def _reason(error: Exception, said: str) -> FailureReason:
    if is_out_of_memory(error) or any(sign in said for sign in _MEMORY):
        return FailureReason.OUT_OF_MEMORY
    if isinstance(error, OSError | SafetensorError) or any(sign in said for sign in _CHECKPOINT):
        return FailureReason.BACKEND_INITIALISATION
    # What is left of these are options that the engine, this build of it, or the model doesn't take.
    if isinstance(error, pydantic.ValidationError | VLLMError | ValueError | NotImplementedError | TypeError):
        return FailureReason.NOT_AS_REQUESTED
    return FailureReason.BACKEND_INITIALISATION


def _said(error: Exception, log: Path) -> str:
    """The error's text, and the errors that the log ends with where it only points at them."""
    text = _plain(error)
    if not _POINTS_AT_THE_LOG.search(text):
        return text
    with contextlib.suppress(OSError):
        lines = log.read_text(errors="replace")[-64_000:].splitlines()
        errors = [_LOG_LINE.sub("", line) for line in lines if _LOG_LINE.match(line)]
        named = [line for line in errors if re.match(r"\s*[\w.]*(Error|Exception|Refused)\b", line)]
        if last := (named or errors)[-_LAST_WORDS:]:
            return f"{text}\n" + "\n".join(dict.fromkeys(line.strip() for line in last))
    return text


def _plain(error: Exception) -> str:
    """Pydantic's report without its links and its echo of the input."""
    if isinstance(error, pydantic.ValidationError):
        return "; ".join(one["msg"].removeprefix("Value error, ") for one in error.errors(include_url=False))
    return f"{type(error).__name__}: {error}"
