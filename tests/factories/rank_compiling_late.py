"""`python -m factories.rank_compiling_late JOB_FILE`: the real rank with PyTorch, which compiles nothing before its
window."""

from __future__ import annotations

import sys
from unittest.mock import patch

from lem_worker import rank
from lem_worker.backends.pytorch import PyTorchBackend

if __name__ == "__main__":
    with patch.object(PyTorchBackend, "compile", lambda *_: None):
        sys.exit(rank.main(sys.argv[1:]))
