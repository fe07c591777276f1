"""The key of a built engine: everything that shapes an engine is in it, and nothing else."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from lem_worker.backends.tensorrt.cache import INGREDIENTS, EngineNotCacheable, GpuKind, engine_folder, key_of

FILES = {"config.json": "1" * 64, "model.safetensors": "2" * 64}
H100 = GpuKind("NVIDIA H100", (9, 0))
WHOLE: dict[str, Any] = {
    "model": "/models/m",
    "revision": None,
    "model_files": FILES,
    "arguments": {"dtype": "float16", "build_config": {"max_batch_size": 8}},
    "versions": {"tensorrt_llm": "1.2.1", "tensorrt": "10.14.1"},
    "gpus": (H100,),
    "environment": {"HOME": "/root"},
}


def digest(**changes: Any) -> str:
    return key_of(**{**WHOLE, **changes}).digest


@pytest.mark.parametrize(
    "changes",
    [
        {"model_files": {**FILES, "model.safetensors": "3" * 64}},
        {"arguments": {"dtype": "bfloat16", "build_config": {"max_batch_size": 8}}},
        {"arguments": {"dtype": "float16", "build_config": {"max_batch_size": 16}}},
        {"arguments": {**WHOLE["arguments"], "tensor_parallel_size": 2}},
        {"arguments": {**WHOLE["arguments"], "quant_config": {"quant_algo": "FP8"}}},
        {"versions": {"tensorrt_llm": "1.2.2", "tensorrt": "10.14.1"}},
        {"versions": {"tensorrt_llm": "1.2.1", "tensorrt": "10.15.0"}},
        {"gpus": (GpuKind("NVIDIA H200", (9, 0)),)},
        {"gpus": (GpuKind("NVIDIA H100", (10, 0)),)},
        {"gpus": (H100, H100)},
        {"environment": {"HOME": "/root", "TRTLLM_ENABLE_PDL": "1"}},
    ],
)
def test_whatever_shapes_an_engine_changes_its_key(changes: dict[str, Any]) -> None:
    assert digest(**changes) != digest()


@pytest.mark.parametrize("changes", [{"model": "/elsewhere/m"}, {"environment": {"HOME": "/home/other"}}])
def test_what_does_not_shape_it_leaves_its_key(changes: dict[str, Any]) -> None:
    assert digest(**changes) == digest()


def test_a_model_of_the_hub_is_known_by_its_commit_or_not_kept() -> None:
    commit = "a" * 40
    of_commit = digest(model="org/m", model_files={}, revision=commit)
    assert of_commit != digest(model="org/m", model_files={}, revision="b" * 40)
    for revision in (None, "main"):
        with pytest.raises(EngineNotCacheable, match=r"set model\.revision to a commit"):
            digest(model="org/m", model_files={}, revision=revision)


def test_an_engine_is_made_once_and_describes_its_key(tmp_path: Path) -> None:
    key, made = key_of(**WHOLE), []

    def build(folder: Path) -> None:
        made.append(folder)
        (folder / "rank0.engine").write_text(str(len(made)))

    places = [engine_folder(tmp_path, key, build=build, force=force) for force in (False, False, True)]
    assert len(set(places)) == 1
    assert len(made) == 2
    assert (places[0] / "rank0.engine").read_text() == "2"
    assert '"tensorrt_llm": "1.2.1"' in (places[0] / INGREDIENTS).read_text()


def test_a_build_that_fails_leaves_no_engine(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "rank0.engine").write_text("half of one")
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError):
        engine_folder(tmp_path, key_of(**WHOLE), build=fail, force=False)
    assert not (tmp_path / key_of(**WHOLE).digest).exists()


def test_two_that_come_together_build_one(tmp_path: Path) -> None:
    made: list[Path] = []
    both = threading.Barrier(2)

    def want() -> None:
        both.wait()
        engine_folder(tmp_path, key_of(**WHOLE), build=made.append, force=False)

    threads = [threading.Thread(target=want) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
