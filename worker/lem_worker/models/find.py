"""Finds a model for an attempt (`python -m lem_worker.models.find MODEL CACHE [REVISION]`) and prints its source.

With `--adapter` instead of a revision it finds an adapter. It is a subprocess, because building a model or hashing its
weights takes minutes and an attempt can be stopped at any time: a process can be killed, a thread can't.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

from lem_worker.models import ModelNotFound, resolve_adapter, resolve_model
from lem_worker.process import children

NOT_FOUND, CACHE_UNUSABLE = 2, 3
"""Exit codes."""

ADAPTER = "--adapter"


def main(arguments: list[str]) -> int:
    """Find; the exit code is 0, or `NOT_FOUND` or `CACHE_UNUSABLE` with one sentence on stderr."""
    children.die_with_parent()
    model, cache, *revision = arguments
    try:
        if revision == [ADAPTER]:
            source = resolve_adapter(model, cache_dir=Path(cache))
        else:
            source = resolve_model(model, cache_dir=Path(cache), revision=revision[0] if revision else None)
    except ModelNotFound as error:
        print(error, file=sys.stderr)  # noqa: T201
        return NOT_FOUND
    except OSError as error:
        print(f"the cache {cache} can't be used ({error.strerror}); free space or set --cache-dir.", file=sys.stderr)  # noqa: T201
        return CACHE_UNUSABLE
    print(json.dumps(asdict(source)))  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
