"""Run `accelerate launch`: `python -m lem_worker.backends.pytorch.accelerate_launcher EXITS_FILE ARGUMENT…`.

The launched ranks lead separate sessions and die with this process, as it dies with the daemon. The daemon is not
the parent of the ranks, so when one fails, this process writes the exit codes by rank to EXITS_FILE as a JSON object.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from lem_worker.process import children
from lem_worker.process.protocol import ACCELERATE_MISSING


def main(arguments: list[str]) -> int:
    """Launch the ranks and wait for them; returns 0 when all of them exit with code 0."""
    children.die_with_parent()
    # The ranks inherit this variable and check it against their parent when they call die_with_parent.
    os.environ["LEM_PARENT"] = str(os.getpid())
    exits_file, *launch = arguments
    try:
        from accelerate.commands.launch import launch_command, launch_command_parser  # noqa: PLC0415 - may be missing
        from torch.distributed.elastic.multiprocessing.errors import ChildFailedError  # noqa: PLC0415
    except ImportError as error:
        print(f"pytorch.num_processes needs the package {error.name}; install llm-energy-measurement[pytorch].")  # noqa: T201
        return ACCELERATE_MISSING
    try:
        launch_command(launch_command_parser().parse_args(launch))
    except ChildFailedError as error:
        exits = {rank: failure.exitcode for rank, failure in error.failures.items()}
        Path(exits_file).write_text(json.dumps(exits))
        print(error, file=sys.stderr)  # noqa: T201
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
