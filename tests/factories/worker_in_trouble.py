"""`python -m factories.worker_in_trouble run ...`: the real `lem-worker`, whose ranks have the fault that a run
names (see `factories.rank_in_trouble`)."""

from __future__ import annotations

from functools import partial
from unittest.mock import patch

from lem_worker import main
from lem_worker.daemon.daemon import Daemon
from lem_worker.daemon.process_start import ProcessModules

if __name__ == "__main__":
    with patch.object(main, "Daemon", partial(Daemon, modules=ProcessModules(rank="factories.rank_in_trouble"))):
        main.main()
