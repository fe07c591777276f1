"""Requests that arrive by themselves make batches of any size: none of them is compiled for inside the window."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from factories.one_rank import Window, job
from lem_domain.config.measurement import TrafficConfig
from lem_domain.evidence.streams import PhaseName
from lem_worker.backends.pytorch.backend import PyTorchBackend
from lem_worker.rank.measured_window import measure, most_waiting
from lem_worker.rank.prompts import Request, warmup_requests
from lem_worker.rank.recorder import Recorder
from lem_worker.rank.window_length import WindowLength

TEXTS = ("one", "two words", "three words here", "four", "five words")
ROWS = 6
RATE_PER_S = 1000
"""Sooner than the fastest machine serves them, so that some wait together."""
REQUESTS = 25
"""No multiple of `ROWS`: however they wait, not all batches have the same size."""


class Noting(PyTorchBackend):
    """Notes how many rows each batch had, and in which phase."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[tuple[PhaseName, int]] = []

    def run(self, requests: Sequence[Request], recorder: Recorder) -> None:
        self.sent.append((recorder.phase, len(requests)))
        super().run(requests, recorder)

    def rows(self, phase: PhaseName) -> set[int]:
        return {rows for met, rows in self.sent if met is phase}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def served(
    folder: Path, traffic: dict[str, Any], dynamic: bool | None, *, tokens: int
) -> tuple[Noting, dict[str, Any]]:
    """A window under traffic after the shapes were met that it can have, and what the backend counted."""
    settings = {"batch_size": ROWS, "torch_compile": {"backend": "eager", "dynamic": dynamic}}
    backend = Noting()
    backend.load(job(folder, TEXTS, output={"max_tokens": tokens}, pytorch=settings))
    prompts = backend.prepare(list(enumerate(TEXTS)))
    backend.compile(warmup_requests(prompts, seed=0), most_waiting(TrafficConfig.model_validate(traffic), 1))
    measure(
        backend,
        prompts,
        Window().recorder,
        length=WindowLength(0, REQUESTS),
        seed=0,
        flush_evidence=lambda: None,
        traffic=TrafficConfig.model_validate(traffic),
    )
    facts = backend.facts()["compilation"]
    backend.unload()
    assert isinstance(facts, dict)
    return backend, facts


@pytest.mark.parametrize(
    ("traffic", "most"),
    [
        pytest.param({"mode": "open", "rate_per_s": RATE_PER_S, "seed": 1}, ROWS, id="open"),
        pytest.param({"mode": "closed", "concurrency": 3}, 3, id="closed", marks=pytest.mark.slow),
    ],
)
def test_every_size_of_batch_that_arrivals_can_make_is_met_before_the_window(
    model_folder: Path, traffic: dict[str, Any], most: int
) -> None:
    backend, facts = served(model_folder, traffic, None, tokens=3)
    assert backend.rows(PhaseName.COMPILE) == set(range(1, most + 1)) >= backend.rows(PhaseName.MEASURE)
    assert facts["compiled_graphs_in_window"] == 0 < facts["compiled_graphs"]
    assert facts["runs_uncompiled"] is False


@pytest.mark.slow
def test_with_fixed_shapes_torch_gives_up_before_the_window_and_not_in_it(model_folder: Path) -> None:
    """Each step of a decode is a shape of its own then, so that the most graphs of a frame are soon there."""
    traffic = {"mode": "open", "rate_per_s": RATE_PER_S, "seed": 1}
    backend, facts = served(model_folder, traffic, False, tokens=6)
    assert (facts["compiled_graphs"], facts["compiled_graphs_in_window"]) == (8, 0)
    assert facts["runs_uncompiled"] is True
    assert len(backend.rows(PhaseName.MEASURE)) > 1
