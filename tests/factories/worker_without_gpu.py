"""`python -m factories.worker_without_gpu run ...`: the real `lem-worker`, whose ranks compute on the CPU, for GPUs
that exist in a simulated NVML only."""

from __future__ import annotations

from functools import partial
from unittest.mock import patch

from lem_worker import main
from lem_worker.daemon import attempt
from lem_worker.daemon.daemon import Daemon
from lem_worker.daemon.process_start import ProcessModules

if __name__ == "__main__":
    with (
        patch.object(main, "Daemon", partial(Daemon, modules=ProcessModules(rank="factories.rank_on_cpu"))),
        # A GPU that is lost never says that it is free.
        patch.object(attempt, "MEMORY_FREE_WITHIN_S", 5.0),
    ):
        main.main()
