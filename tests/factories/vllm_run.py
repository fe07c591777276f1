"""The vLLM backend on a real, tiny model, through the path that a rank's window takes."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic.types import JsonValue

from lem_domain.config.experiment import ExperimentConfig
from lem_domain.evidence import PhaseName
from lem_worker.backends import ContinuousBackend, create_backend
from lem_worker.goal import Goal
from lem_worker.measuring import measure, send_once
from lem_worker.process_protocol import RankJob
from lem_worker.prompts import warmup_requests
from lem_worker.recorder import Recorder, Sinks

TEXTS = (
    "The license of this program is",
    "Copyright",
    "You may",
    "This is a much longer prompt than all of the others, so that it takes a step of its own where there is no room",
    "Everyone is permitted to copy and distribute",
    "When we speak of free software",
    "A",
    "The precise terms and conditions follow",
)
TOKENS = 12
EAGER: dict[str, JsonValue] = {"enforce_eager": True, "kv_cache_memory_bytes": 64 * 2**20}
"""Quick to start, and small."""


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


def job(folder: Path | str, texts: Sequence[str] = TEXTS, *, spool: Path | str = "unused", **config: Any) -> RankJob:
    """A rank's job; `vllm` in `config` is laid over `EAGER`, and None takes a key of it away."""
    settings = {**EAGER, **config.pop("vllm", {})}
    document = {
        "backend": "vllm",
        "model": {"id": "tiny", **config.pop("model", {})},
        "precision": "float32",
        "output": {"max_tokens": TOKENS},
        **config,
        "vllm": {name: value for name, value in settings.items() if value is not None},
    }
    return RankJob(
        attempt_id="a",
        rank=0,
        world_size=1,
        config=ExperimentConfig.model_validate(document),
        model_path=str(folder),
        prompts=tuple(texts),
        spool=str(spool),
        devices=(),
    )


class Run:
    """A loaded engine and what one window on it gave; `with` frees it."""

    def __init__(
        self,
        folder: Path | str,
        texts: Sequence[str] = TEXTS,
        *,
        requests: int = 1,
        warm_up: bool = False,
        **config: Any,
    ) -> None:
        task = job(folder, texts, **config)
        self.config = task.config
        backend = create_backend(task.config.backend)
        assert isinstance(backend, ContinuousBackend)
        self.backend: Any = backend
        backend.load(task)
        self.live: Any = self.backend._engine
        self.prompts = backend.prepare(list(enumerate(texts)))
        sample = warmup_requests(self.prompts, seed=self.config.decoding.seed)[: backend.in_flight()]
        found = backend.effective_config(sample)
        self.engine = found.engine
        self.effective = {parameter.name: parameter.effective for parameter in found.parameters}
        self.unconfirmed = [parameter.name for parameter in found.parameters if not parameter.confirmed]
        if warm_up:
            send_once(backend, sample, Recorder(PhaseName.WARMUP), max_tokens=TOKENS)
        self.measure(requests)

    def measure(self, requests: int = 1) -> None:
        """Another window on the same engine."""
        requests_table, token_table, outputs = Kept(), Kept(), Kept()
        self.recorder = Recorder(PhaseName.MEASURE, Sinks(requests_table, token_table, outputs))
        self.repetitions = measure(
            self.backend,
            self.prompts,
            self.recorder,
            goal=Goal(0, requests),
            seed=self.config.decoding.seed,
            max_tokens=self.config.output.max_tokens,
            between_batches=lambda: None,
            traffic=self.config.traffic,
        )
        self.requests = sorted(requests_table.rows, key=lambda row: row["request_id"])
        self.tokens, self.outputs = token_table.rows, outputs.ids
        self.facts = self.backend.facts()

    def times_of(self, request_id: int) -> list[int]:
        """When the tokens of a request came, in ns."""
        return [row["time_ns"] for row in self.tokens if row["request_id"] == request_id]

    def steps_of(self, request_id: int) -> list[int]:
        """How many tokens a request got in each of its steps."""
        return [len(list(group)) for _, group in itertools.groupby(self.times_of(request_id))]

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *error: object) -> None:
        self.backend.unload()
