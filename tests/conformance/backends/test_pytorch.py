"""The PyTorch backend, with transformers and a tiny model."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from conformance.backends.suite import TEXTS, TOKENS, BackendConformance, Rig
from factories import one_rank
from lem_domain.states import FailureReason
from lem_worker.models import resolve_model


class TestPyTorch(BackendConformance):
    name = "pytorch"

    @pytest.fixture(scope="class")
    @classmethod
    def rig(cls, tmp_path_factory: pytest.TempPathFactory) -> Rig:
        model = resolve_model("builtin:tiny-llama", cache_dir=tmp_path_factory.mktemp("models")).path_or_id
        settings = {"batch_size": 2, "batching": "static", "attn_implementation": "sdpa", "use_cache": True}
        job = partial(one_rank.job, texts=TEXTS, output={"max_tokens": TOKENS}, pytorch=settings)
        missing = Path(model) / "missing"
        return Rig(partial(job, model), partial(job, missing), FailureReason.BACKEND_INITIALISATION)
