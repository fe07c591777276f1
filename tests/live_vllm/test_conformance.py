"""The vLLM backend, on the live engine."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from conformance.backends.suite import TEXTS, TOKENS, BackendConformance, Loaded, Rig, loaded
from factories import vllm_run
from lem_domain.states import FailureReason


class TestVllm(BackendConformance):
    name = "vllm"

    @pytest.fixture(scope="class")
    @classmethod
    def rig(cls, tiny: Path) -> Rig:
        job = partial(vllm_run.job, texts=TEXTS, output={"max_tokens": TOKENS}, vllm={"max_num_seqs": 2})
        return Rig(partial(job, tiny), partial(job, tiny / "missing"), FailureReason.BACKEND_INITIALISATION)

    # Each test loads its engine: vLLM's process groups are global, and the first engine of a process that ends
    # takes them from all others (vLLM 0.32).
    @pytest.fixture
    def live(self, rig: Rig) -> Iterator[Loaded]:
        with loaded(rig.job()) as live:
            yield live
