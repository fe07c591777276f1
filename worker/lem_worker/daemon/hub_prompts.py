"""Read prompts from a dataset and print them as a JSON list (`python -m lem_worker.daemon.hub_prompts SOURCE [MOST]`).

A process of its own: importing the library takes seconds and much memory, and a download can only be stopped by a kill.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
from collections.abc import Iterator

from lem_domain.config.prompt_sources import HuggingFacePrompts
from lem_worker.process import children as processes

NOT_FOUND, NO_LIBRARY = 2, 3
"""Exit codes: the prompts can't be had; the library is not installed."""


class HubPromptsError(ValueError):
    """The dataset holds no prompts where they were looked for."""


def read(source: HuggingFacePrompts, most: int | None) -> list[str]:
    """The texts of the column, at most so many.

    Raises:
        ImportError: the `datasets` library is not installed.
        HubPromptsError: there is no such column, or something else than a text stands in it.
    """
    from datasets import load_dataset  # noqa: PLC0415 - an extra, and it takes seconds

    rows = load_dataset(
        source.dataset,
        source.subset,
        split=source.split,
        revision=source.revision,
        # Only what is needed is downloaded.
        streaming=most is not None,
    )
    names = rows.column_names
    if names is not None and source.column not in names:
        raise HubPromptsError(
            f"the dataset {source.dataset} has no column {source.column!r} (it has {', '.join(names)}); "
            "set prompts.huggingface.column."
        )
    texts = list(_texts(itertools.islice(rows, most), source))
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
    """The exit code: 0, or with a sentence `NOT_FOUND` or `NO_LIBRARY`."""
    processes.die_with_parent()
    source = HuggingFacePrompts.model_validate_json(arguments[0])
    try:
        texts = read(source, int(arguments[1]) if arguments[1] else None)
    except ImportError as error:
        print(  # noqa: T201
            f"prompts.huggingface needs the package {error.name or 'datasets'}; install "
            "llm-energy-measurement[datasets] in this worker's environment.",
            file=sys.stderr,
        )
        return NO_LIBRARY
    except Exception as error:
        first = next(iter(str(error).splitlines()), "")
        said = first if isinstance(error, HubPromptsError) else f"{source.dataset}: {type(error).__name__}: {first}"
        print(said, file=sys.stderr)  # noqa: T201
        return NOT_FOUND
    print(json.dumps(texts))  # noqa: T201
    return 0


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    # Not `sys.exit`: threads that the library left behind may abort an interpreter that ends ("terminate called without
    # an active exception"), after everything was said.
    os._exit(code)
