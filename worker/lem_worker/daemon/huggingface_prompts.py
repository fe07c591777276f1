"""Print the prompts of a Hugging Face dataset as a JSON list: `python -m … SOURCE [LIMIT]`.

A subprocess, because importing the library takes seconds and much memory, and only a kill stops a download.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
from collections.abc import Iterator

from lem_domain.config.prompt_sources import HuggingFacePrompts
from lem_worker.process.children import die_with_parent

NOT_FOUND, LIBRARY_MISSING = 2, 3
"""Exit codes: the prompts can't be read; the library is not installed."""


class HubPromptsError(ValueError):
    """The dataset has no prompts in the column or split."""


def read(source: HuggingFacePrompts, limit: int | None) -> list[str]:
    """Read the texts of the column, at most `limit` of them.

    Raises:
        ImportError: the `datasets` library is not installed.
        HubPromptsError: the column does not exist or holds something other than text.
    """
    from datasets import load_dataset  # noqa: PLC0415 - an optional extra whose import takes seconds

    rows = load_dataset(
        source.dataset,
        source.subset,
        split=source.split,
        revision=source.revision,
        # With a limit, streaming downloads only the rows that are read.
        streaming=limit is not None,
    )
    names = rows.column_names
    if names is not None and source.column not in names:
        raise HubPromptsError(
            f"the dataset {source.dataset} has no column {source.column!r} (it has {', '.join(names)}); "
            "set prompts.huggingface.column."
        )
    texts = list(_texts(itertools.islice(rows, limit), source))
    if not texts:
        raise HubPromptsError(f"the split {source.split!r} of {source.dataset} is empty; choose another.")
    return texts


def _texts(rows: Iterator[dict[str, object]], source: HuggingFacePrompts) -> Iterator[str]:
    for number, row in enumerate(rows):
        text = row.get(source.column)
        if not isinstance(text, str) or not text.strip():
            raise HubPromptsError(
                f"row {number} of {source.dataset} has no text in column {source.column!r}; choose another column."
            )
        yield text


def main(arguments: list[str]) -> int:
    """Print the prompts; returns 0, or `NOT_FOUND` or `LIBRARY_MISSING` with a message on standard error."""
    die_with_parent()
    source = HuggingFacePrompts.model_validate_json(arguments[0])
    try:
        texts = read(source, int(arguments[1]) if arguments[1] else None)
    except ImportError as error:
        print(  # noqa: T201
            f"prompts.huggingface needs the package {error.name or 'datasets'}; install "
            "llm-energy-measurement[datasets] in this worker's environment.",
            file=sys.stderr,
        )
        return LIBRARY_MISSING
    except Exception as error:
        first = next(iter(str(error).splitlines()), "")
        message = first if isinstance(error, HubPromptsError) else f"{source.dataset}: {type(error).__name__}: {first}"
        print(message, file=sys.stderr)  # noqa: T201
        return NOT_FOUND
    print(json.dumps(texts))  # noqa: T201
    return 0


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    # os._exit instead of sys.exit: threads that the library leaves running may abort the interpreter's shutdown
    # ("terminate called without an active exception") after all output was written.
    os._exit(code)
