"""The TensorRT-LLM backend, on the fake engine with the published signatures."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from conformance.backends.suite import TEXTS, TOKENS, BackendConformance, Rig
from factories.tensorrt_ranks import FAKES, Stage
from fakes.nvml.library import SimulatedNvml, built
from lem_domain.states import FailureReason
from lem_worker.backends.tensorrt import devices as tensorrt_devices
from lem_worker.models import resolve_model


def forget_the_fake() -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "tensorrt_llm"]:
        del sys.modules[name]


class TestTensorrt(BackendConformance):
    name = "tensorrt"

    @pytest.fixture(scope="class")
    @classmethod
    def rig(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
        folder = tmp_path_factory.mktemp("tensorrt")
        model = Path(resolve_model("builtin:tiny-llama", cache_dir=folder).path_or_id)
        stage = Stage(folder, model, SimulatedNvml(built(tmp_path_factory.getbasetemp().parent), folder / "nvml.state"))
        settings = {"max_batch_size": 2, "kv_cache": {"enable_block_reuse": False}}
        job = partial(stage.job, output={"max_tokens": TOKENS}, tensorrt=settings)
        with pytest.MonkeyPatch.context() as patch:
            forget_the_fake()
            patch.syspath_prepend(FAKES)
            patch.setattr(tensorrt_devices, "_capability", lambda _: (9, 0))
            for name, value in stage.variables().items():
                patch.setenv(name, value)
            assert stage.job().prompts == TEXTS
            yield Rig(job, partial(job, uuids=()), FailureReason.BACKEND_UNAVAILABLE)
        forget_the_fake()
