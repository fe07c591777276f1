"""A LoRA adapter on a vLLM engine. Every request of a run uses the run's one adapter.

Batches in which some requests use it and others don't are not made here: on the CPU build the others would get it too.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple, get_args

from pydantic.types import JsonValue
from vllm import EngineArgs, LLMEngine
from vllm.config.lora import MaxLoRARanks
from vllm.lora.request import LoRARequest
from vllm.lora.utils import get_adapter_absolute_path

from lem_domain.states import FailureReason
from lem_worker.process.failures import EngineRefused
from lem_worker.process.protocol import RankJob

_NUMBER = 1
"""The engine wants one from 1 on; there is no other adapter."""


class Adapter(NamedTuple):
    """The adapter of a run, and where its files are."""

    name: str
    folder: Path
    model: str

    @property
    def request(self) -> LoRARequest:
        """What a request names it by."""
        return LoRARequest(self.name, _NUMBER, str(self.folder))

    def arguments(self) -> dict[str, JsonValue]:
        """What the engine needs to have room for it; its own bound on ranks stays where the adapter is below it.

        Raises:
            EngineRefused: the files are not those of a LoRA, or its rank is above what the engine takes.
        """
        try:
            described = json.loads((self.folder / "adapter_config.json").read_text())
            rank = max(int(described["r"]), *map(int, (described.get("rank_pattern") or {}).values()), 0)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise self._refused(f"{type(error).__name__}: {error}") from error
        fitting = [bound for bound in get_args(MaxLoRARanks) if bound >= rank]
        if not fitting:
            raise self._refused(f"its rank {rank} is above {max(get_args(MaxLoRARanks))}, the most that vLLM takes")
        return {"enable_lora": True, **({"max_lora_rank": fitting[0]} if rank > EngineArgs.max_lora_rank else {})}

    def put_into(self, engine: LLMEngine) -> None:
        """Load it now, so that no request has to.

        Raises:
            EngineRefused: it was not made for this model, or has what vLLM can't do.
        """
        try:
            engine.add_lora(self.request)
        except Exception as error:
            raise self._refused(str(error)) from error

    def _refused(self, why: str) -> EngineRefused:
        return EngineRefused(
            FailureReason.BACKEND_INITIALISATION,
            f"the adapter {self.name} can't be put into {self.model} ({why}); name a LoRA made for this model.",
        )


def of(job: RankJob) -> Adapter | None:
    """The adapter of the job, its files fetched from the hub where it is named by an id."""
    name = job.config.model.adapter
    if name is None:
        return None
    folder = Path(get_adapter_absolute_path(job.adapter_path or name))
    return Adapter(name, folder, job.config.model.id)
