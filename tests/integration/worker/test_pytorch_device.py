"""Which device a rank of the PyTorch backend computes on."""

from __future__ import annotations

import pytest
import torch

from factories.one_rank import job
from lem_domain.wire.workers import Device, DeviceKind
from lem_worker.backends.pytorch.model import ModelRefused, _device
from lem_worker.process.protocol import RankJob


def rank(number: int, of: int, gpus: int) -> RankJob:
    devices = tuple(Device(uuid=f"GPU-{one}", kind=DeviceKind.GPU, name="NVIDIA H100") for one in range(gpus))
    return job("unused").model_copy(update={"rank": number, "world_size": of, "devices": devices})


def test_a_rank_computes_on_the_leased_device_of_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA numbers what CUDA_VISIBLE_DEVICES shows it, which is the leased devices in their order."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert [_device(rank(number, 4, gpus=4)) for number in range(4)] == [
        torch.device("cuda", number) for number in range(4)
    ]
    assert _device(rank(0, 1, gpus=1)) == torch.device("cuda", 0)
    with pytest.raises(ModelRefused, match=r"which they would share; set devices\.count to 2"):
        _device(rank(1, 2, gpus=1))


def test_without_a_gpu_in_the_lease_it_is_the_cpu_and_a_leased_one_is_not_done_without(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert _device(rank(0, 1, gpus=0)) == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ModelRefused, match="NVIDIA H100 was leased but PyTorch sees no GPU"):
        _device(rank(0, 1, gpus=1))
