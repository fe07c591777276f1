"""Names of the energy sources in worker/lem_worker/sampler/sources/; written by `make reference`."""

from __future__ import annotations

from typing import Literal

SourceName = Literal["codecarbon", "nvml", "rapl", "simulated"]
