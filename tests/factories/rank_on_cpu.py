"""`python -m factories.rank_on_cpu JOB_FILE`: the real rank with a real engine that computes on the CPU, for GPUs that
exist in a simulated NVML only. It writes CUDA_VISIBLE_DEVICES to the file that LEM_TEST_CUDA_SAW names."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from unittest.mock import patch

import torch

from lem_worker.backends.pytorch import model as pytorch_model
from lem_worker.rank import main as rank

if __name__ == "__main__":
    if saw := os.environ.get("LEM_TEST_CUDA_SAW"):
        Path(saw).write_text(os.environ.get("CUDA_VISIBLE_DEVICES", ""))
    with patch.object(pytorch_model, "_device", lambda _: torch.device("cpu")):
        sys.exit(rank.main(sys.argv[1:]))
