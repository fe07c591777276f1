"""What tests of a backend in this process have in common: some prompts, a rank's job, and rows kept in memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic.types import JsonValue

from lem_domain.config.experiment import ExperimentConfig
from lem_domain.evidence.streams import PhaseName
from lem_domain.wire.runs import EffectiveConfig
from lem_worker.process.protocol import RankJob
from lem_worker.rank.recorder import Recorder, Sinks

TEXTS = (
    "The license of this program is",
    "Copyright",
    "You may",
    "This is a much longer prompt than all of the others, so that they are padded a lot",
    "Everyone is permitted to copy and distribute",
    "When we speak of free software",
    "A",
    "The precise terms and conditions follow",
)
TOKENS = 12


class Kept:
    """Rows and outputs in memory."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.ids: dict[int, list[int]] = {}

    def append(self, **columns: Any) -> None:
        self.rows.append(columns)

    def extend(self, **columns: Any) -> None:
        self.rows += [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    def add(self, prompt_index: int, token_ids: Sequence[int]) -> None:
        self.ids[prompt_index] = list(token_ids)


class Window:
    """A recorder, and what it kept of one window."""

    def __init__(self) -> None:
        requests, tokens, outputs = Kept(), Kept(), Kept()
        self.recorder = Recorder(PhaseName.MEASURE, Sinks(requests, tokens, outputs))
        self.requests, self.tokens, self.outputs = requests.rows, tokens.rows, outputs.ids


def job(
    folder: Path | str,
    texts: Sequence[str] = TEXTS,
    *,
    spool: Path | str = "unused",
    assistant: Path | None = None,
    adapter: Path | None = None,
    **config: Any,
) -> RankJob:
    """The job of the only rank, in float32, on the CPU."""
    document = {"model": "tiny", "precision": "float32", "output": {"max_tokens": TOKENS}, **config}
    return RankJob(
        attempt_id="a",
        rank=0,
        world_size=1,
        config=ExperimentConfig.model_validate(document),
        model_path=str(folder),
        prompts=tuple(texts),
        spool=str(spool),
        assistant_path=None if assistant is None else str(assistant),
        adapter_path=None if adapter is None else str(adapter),
        devices=(),
    )


def effective_values(found: EffectiveConfig) -> dict[str, JsonValue]:
    """By name."""
    return {parameter.name: parameter.effective for parameter in found.parameters}


def unconfirmed_names(found: EffectiveConfig) -> list[str]:
    """What was asked for and is not in force."""
    return [parameter.name for parameter in found.parameters if not parameter.confirmed]
