"""The vLLM backend, on the live engine."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from conformance.backends.suite import TEXTS, TOKENS, BackendConformance, Rig
from factories import vllm_run
from lem_domain.states import FailureReason


class TestVllm(BackendConformance):
    name = "vllm"

    @pytest.fixture(scope="class")
    @classmethod
    def rig(cls, tiny: Path) -> Rig:
        job = partial(vllm_run.job, texts=TEXTS, output={"max_tokens": TOKENS}, vllm={"max_num_seqs": 2})
        return Rig(partial(job, tiny), partial(job, tiny / "missing"), FailureReason.BACKEND_INITIALISATION)
