"""A rank of the TensorRT-LLM backend on the fake engine and simulated GPUs, and what the engine was told."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fakes.nvml.library import SimulatedNvml
from lem_domain.config.experiment import ExperimentConfig
from lem_domain.wire.workers import Device, DeviceKind
from lem_worker.process.protocol import RankJob

FAKES = Path(__file__).parents[1] / "fakes"
GPU = "GPU-aaaaaaaa-0000-0000-0000-000000000000"
SECOND = "GPU-bbbbbbbb-0000-0000-0000-000000000000"
TEXTS = ("one two three", "four five", "six", "seven eight nine ten")
QUICK: dict[str, Any] = {
    "backend": "tensorrt",
    "model": "m",
    "output": {"max_tokens": 4},
    "window": {"min_duration_s": 0, "min_requests": 4},
    "warmup": {"min_requests": 2, "window_size": 2, "max_requests": 2, "power_slope": None},
}


def gpu_line(number: int, uuid: str, capability: str = "9.0") -> str:
    """A GPU of the simulated machine."""
    return (
        f'device {number} uuid {uuid} name "NVIDIA H100" memory_total 85899345920\nfacts {number} compute {capability}'
    )


@dataclass
class Stage:
    """A machine with two GPUs, a model, and a file that the fake engine writes down what it is told."""

    folder: Path
    model: Path
    nvml: SimulatedNvml
    orders: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.nvml.write(gpu_line(0, GPU), gpu_line(1, SECOND))

    def job(self, *, uuids: tuple[str, ...] = (GPU,), **config: Any) -> RankJob:
        """A rank's job with the leased GPUs."""
        window = {**QUICK["window"], **config.pop("window", {})}
        settings = {**QUICK, "devices": {"count": max(1, len(uuids))}, "window": window, **config}
        return RankJob(
            attempt_id="a",
            rank=0,
            world_size=1,
            config=ExperimentConfig.model_validate(settings),
            model_path=str(self.model),
            model_files={"config.json": "0" * 64},
            prompts=TEXTS,
            spool=str(self.folder / "spool"),
            devices=tuple(Device(uuid=uuid, kind=DeviceKind.GPU, name="NVIDIA H100") for uuid in uuids),
        )

    @property
    def log(self) -> Path:
        """What the fake was told."""
        return self.folder / "engine.log"

    def variables(self, *uuids: str) -> dict[str, str]:
        """What the daemon says of the leased GPUs, and the test to the fake engine."""
        return {
            "CUDA_VISIBLE_DEVICES": ",".join(uuids or (GPU,)),
            "FAKE_TENSORRT_LLM": json.dumps(self.orders),
            "FAKE_TENSORRT_LLM_LOG": str(self.log),
            "HF_HUB_OFFLINE": "1",
        }

    def environment(self, *uuids: str) -> dict[str, str]:
        """Of a rank, with the fake engine in reach."""
        path = os.pathsep.join([str(FAKES), os.environ.get("PYTHONPATH", "")])
        return self.nvml.environment({"PYTHONPATH": path, **self.variables(*uuids)})

    def told(self, what: str) -> list[Any]:
        """Everything of one kind that the fake was told."""
        lines = [json.loads(line) for line in self.log.read_text().splitlines()] if self.log.exists() else []
        return [line["value"] for line in lines if line["what"] == what]

    def engine(self) -> dict[str, Any]:
        """The arguments of the last LLM that was made."""
        last: dict[str, Any] = self.told("LLM")[-1]
        return last
