"""The vLLM backend on a real, tiny model, through the path that a rank's window takes."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic.types import JsonValue

from factories import one_rank
from factories.one_rank import TEXTS, Window, effective_values, unconfirmed_names
from lem_domain.evidence.streams import PhaseName
from lem_worker.backends.create import create_backend
from lem_worker.backends.protocol import ContinuousBackend
from lem_worker.process.protocol import RankJob
from lem_worker.rank.measured_window import measure, send_once
from lem_worker.rank.prompts import warmup_requests
from lem_worker.rank.recorder import Recorder
from lem_worker.rank.window_length import WindowLength

EAGER: dict[str, JsonValue] = {"enforce_eager": True, "kv_cache_memory_bytes": 64 * 2**20}
"""Quick to start, and small."""


def job(folder: Path | str, texts: Sequence[str] = TEXTS, **config: Any) -> RankJob:
    """A rank's job; `vllm` in `config` is laid over `EAGER`, and None takes a key of it away."""
    settings = {**EAGER, **config.pop("vllm", {})}
    model = {"id": "tiny", **config.pop("model", {})}
    given = {name: value for name, value in settings.items() if value is not None}
    return one_rank.job(folder, texts, backend="vllm", model=model, vllm=given, **config)


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
        self.live: Any = backend._engine  # type: ignore[attr-defined]
        self.prompts = backend.prepare(list(enumerate(texts)))
        sample = warmup_requests(self.prompts, seed=self.config.decoding.seed)[: backend.in_flight()]
        found = backend.effective_config(sample)
        self.engine = found.engine
        self.effective, self.unconfirmed = effective_values(found), unconfirmed_names(found)
        if warm_up:
            send_once(backend, sample, Recorder(PhaseName.WARMUP))
        self.measure(requests)

    def measure(self, requests: int = 1) -> None:
        """Another window on the same engine."""
        window = Window()
        self.recorder = window.recorder
        self.repetitions = measure(
            self.backend,
            self.prompts,
            self.recorder,
            length=WindowLength(0, requests),
            seed=self.config.decoding.seed,
            flush_evidence=lambda: None,
            traffic=self.config.traffic,
        )
        self.requests = sorted(window.requests, key=lambda row: row["request_id"])
        self.tokens, self.outputs = window.tokens, window.outputs
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
