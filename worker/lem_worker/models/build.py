"""Builds a built-in model in a folder (`python -m lem_worker.models.build NAME FOLDER`).

It is a subprocess, because the build needs an engine, which the daemon must not import.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

from lem_worker.models.resolve import ModelNotFound
from lem_worker.process import children

_BUILDERS = {"tiny-llama": "lem_worker.models.tiny_llama", "smollm2-135m-instruct": "lem_worker.models.smollm2"}


def main(arguments: list[str]) -> int:
    """Build; the exit code is 2, with one sentence on stderr, where a package or its data is missing."""
    children.die_with_parent()
    name, folder = arguments
    try:
        # Imported here, so that a missing engine is reported in one sentence.
        import_module(_BUILDERS[name]).build(Path(folder))
    except ModelNotFound as error:
        print(error, file=sys.stderr)  # noqa: T201
        return 2
    except ImportError as error:
        print(f"builtin:{name} needs {error.name}; install the extra pytorch.", file=sys.stderr)  # noqa: T201
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
