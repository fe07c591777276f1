"""A LoRA adapter on a vLLM engine; every request of a run uses the run's one adapter.

Batches that mix requests with and without it never occur: the CPU build would apply it to all of them.
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

_LORA_ID = 1
"""The engine numbers adapters from 1; there is no other."""


class Adapter(NamedTuple):
    """The adapter of a run and the folder of its files."""

    name: str
    folder: Path
    model: str

    @property
    def request(self) -> LoRARequest:
        """The adapter as a request names it."""
        return LoRARequest(self.name, _LORA_ID, str(self.folder))

    def arguments(self) -> dict[str, JsonValue]:
        """The engine arguments for the adapter; the engine's default bound on ranks stays where it suffices.

        Raises:
            EngineRefused: the files are not a LoRA, or its rank is above the engine's limit.
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

    def load_into(self, engine: LLMEngine) -> None:
        """Load the adapter now; otherwise the first request would load it inside a phase.

        Raises:
            EngineRefused: it was made for another model, or uses a feature that vLLM lacks.
        """
        try:
            engine.add_lora(self.request)
        except Exception as error:
            raise self._refused(str(error)) from error

    def _refused(self, why: str) -> EngineRefused:
        return EngineRefused(
            FailureReason.BACKEND_INITIALISATION,
            f"the adapter {self.name} can't be loaded into {self.model} ({why}); name a LoRA made for this model.",
        )


def adapter_of(job: RankJob) -> Adapter | None:
    """The adapter of the job, downloaded where it is named by a hub id; None without one."""
    name = job.config.model.adapter
    if name is None:
        return None
    folder = Path(get_adapter_absolute_path(job.adapter_path or name))
    return Adapter(name, folder, job.config.model.id)
