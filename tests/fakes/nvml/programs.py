"""Python programs that begin with the worker's modules imported: a parent process imports them once and forks.

An import takes ten times as long as most programs of the tests. The library is not loaded before the fork, so each
program has an NVML that no other has asked. Run as a program, this module is the parent: it reads a program and its
environment from each line of its input, and answers each with a line.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
import traceback
from typing import Any, NoReturn


def serve() -> None:
    """Run the programs one after another until the input ends."""
    import lem_worker.daemon.temperatures
    import lem_worker.devices.gpu_memory
    import lem_worker.devices.inventory
    import lem_worker.sampler.sampling
    import lem_worker.sampler.sources.nvml  # noqa: F401

    for line in sys.stdin:
        asked = json.loads(line)
        with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
            child = os.fork()
            if child == 0:
                _run(asked, output.fileno(), errors.fileno())
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            output.seek(0)
            errors.seek(0)
            sys.stdout.write(json.dumps([code, output.read(), errors.read()]) + "\n")
            sys.stdout.flush()


def _run(asked: dict[str, Any], output: int, errors: int) -> NoReturn:
    code = 1
    try:
        os.environ.clear()
        os.environ.update(asked["environment"])
        empty = os.open(os.devnull, os.O_RDONLY)
        for mine, its in ((empty, 0), (output, 1), (errors, 2)):
            os.dup2(mine, its)
        exec(compile(asked["script"], "<script>", "exec"), {"__name__": "__main__"})
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    serve()
