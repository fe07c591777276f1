"""`python -m factories.rank_on_cpu JOB_FILE`: the real rank with a real engine, which computes on the CPU whatever was
leased; nothing else of it differs. For GPUs that exist in a simulated NVML alone."""

from __future__ import annotations

import sys
from unittest.mock import patch

import torch

from lem_worker import rank
from lem_worker.backends import pytorch_model

if __name__ == "__main__":
    with patch.object(pytorch_model, "_device", lambda _: torch.device("cpu")):
        sys.exit(rank.main(sys.argv[1:]))
