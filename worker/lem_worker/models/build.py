"""Makes a built-in model in a folder (`python -m lem_worker.models.build NAME FOLDER`).

A process of its own, because making one needs an engine, and the daemon never imports any.
"""

from __future__ import annotations

import sys
from pathlib import Path

from lem_worker.models import smollm2, tiny_llama
from lem_worker.models.missing import ModelNotFound

_BUILDERS = {"tiny-llama": tiny_llama.build, "smollm2-135m-instruct": smollm2.build}


def main(arguments: list[str]) -> int:
    """The exit code: 0, or 2 with a sentence when something is missing."""
    name, folder = arguments
    try:
        _BUILDERS[name](Path(folder))
    except ModelNotFound as error:
        print(error, file=sys.stderr)  # noqa: T201
        return 2
    except ImportError as error:
        print(f"builtin:{name} needs {error.name}; install the extra pytorch.", file=sys.stderr)  # noqa: T201
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
