"""`python -m factories.rank_compiling_late JOB_FILE`: the real rank with PyTorch, which compiles nothing before its
window."""

from __future__ import annotations

import sys
from unittest.mock import patch

from lem_worker.backends.pytorch.backend import PyTorchBackend
from lem_worker.rank import main as rank

if __name__ == "__main__":
    with patch.object(PyTorchBackend, "compile", lambda *_: None):
        sys.exit(rank.main(sys.argv[1:]))
