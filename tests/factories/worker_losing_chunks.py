"""`python -m factories.worker_losing_chunks run ...`: the real `lem-worker`, whose ranks lose the chunk that
the run's model names (see `factories.rank_losing_chunk`)."""

from __future__ import annotations

from functools import partial
from unittest.mock import patch

from lem_worker import main
from lem_worker.daemon.daemon import Daemon
from lem_worker.daemon.process_start import ProcessModules

if __name__ == "__main__":
    with patch.object(main, "Daemon", partial(Daemon, modules=ProcessModules(rank="factories.rank_losing_chunk"))):
        main.main()
