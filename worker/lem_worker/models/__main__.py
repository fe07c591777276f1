"""`python -m lem_worker.models MODEL`: builds a built-in model and prints the location of a model."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from lem_worker.models import ModelNotFound, default_cache_dir, resolve_model


def main() -> int:
    """Run the command; the exit code is 2 for an unknown model or an unusable cache."""
    parser = argparse.ArgumentParser(prog="python -m lem_worker.models", description=__doc__)
    parser.add_argument("model", help="for example builtin:smollm2-135m-instruct")
    parser.add_argument("--cache-dir", type=Path, default=None, help="default LEM_CACHE_DIR or ~/.cache/lem")
    options = parser.parse_args()
    cache = options.cache_dir or default_cache_dir()
    try:
        source = resolve_model(options.model, cache_dir=cache)
    except ModelNotFound as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return 2
    except OSError as error:
        print(f"error: the cache {cache} can't be used ({error.strerror}); set --cache-dir.", file=sys.stderr)  # noqa: T201
        return 2
    print(source.path_or_id)  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
