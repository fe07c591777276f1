"""Files of prompts and traces of arrivals beside a campaign file."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from lem_client.errors import FileError
from lem_client.files.documents import read_text
from lem_client.files.named_files import FileKind
from lem_domain.arrivals import TraceError, trace_lines
from lem_domain.prompt_sets import DEFAULT_COLUMN, PromptFileError, parse_jsonl_prompts, parse_text_prompts
from lem_domain.wire.datasets import MAX_DATASET_BYTES

# Every line is sent as JSON, so the limit of what is sent is one for the file, too.


def _prompts(path: Path, column: str | None) -> tuple[str, ...]:
    text = read_text(path, MAX_DATASET_BYTES, "a file of prompts")
    try:
        if path.suffix.lower() in (".jsonl", ".ndjson"):
            return parse_jsonl_prompts(text, column or DEFAULT_COLUMN)
        if column is not None:
            raise PromptFileError("a text file has no columns; remove prompts.column or name a .jsonl file")
        return parse_text_prompts(text)
    except PromptFileError as error:
        raise FileError((f"{path}: {error}",)) from None


def _arrivals(path: Path, _: str | None) -> tuple[str, ...]:
    text = read_text(path, MAX_DATASET_BYTES, "a trace of arrivals")
    try:
        return trace_lines(text)
    except TraceError as error:
        raise FileError((f"{path}: {error}",)) from None


PROMPTS: Final = FileKind("prompts", "file", "dataset", "column", _prompts)
ARRIVALS: Final = FileKind("traffic", "trace_file", "trace", None, _arrivals)
KINDS: Final = (PROMPTS, ARRIVALS)
