"""Makes a built-in model in a folder (`python -m lem_worker.models.build NAME FOLDER`).

A process of its own, because making one needs an engine, and the daemon never imports any.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

from lem_worker.models.missing import ModelNotFound
from lem_worker.process import children as processes

_BUILDERS = {"tiny-llama": "lem_worker.models.tiny_llama", "smollm2-135m-instruct": "lem_worker.models.smollm2"}


def main(arguments: list[str]) -> int:
    """The exit code: 0, or 2 with a sentence when something is missing."""
    processes.die_with_parent()
    name, folder = arguments
    try:
        # Only now, so that a missing engine is told in a sentence.
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
