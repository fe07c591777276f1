"""Synthetic prompts, the prefill probe and perplexity on a real, tiny model of the PyTorch backend."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import torch

from factories.fake_server import FakeServer
from lem_domain.config.experiment import ExperimentConfig
from lem_domain.evidence.streams import PhaseName, StreamName
from lem_domain.prompt_sets import perplexity_text
from lem_worker.backends.pytorch.backend import PyTorchBackend
from lem_worker.daemon.process_start import ProcessModules
from lem_worker.models import resolve_model
from lem_worker.process.protocol import RankJob
from lem_worker.rank.after_window import probe_prefill
from lem_worker.rank.measured_window import RankIndex, Ticker

Work = Callable[..., Coroutine[Any, Any, None]]


@pytest.fixture(scope="module")
def backend(model_cache: Path) -> PyTorchBackend:
    """With the model loaded."""
    folder = resolve_model("builtin:tiny-llama", cache_dir=model_cache).path_or_id
    job = RankJob(
        attempt_id="a",
        rank=0,
        world_size=1,
        config=ExperimentConfig.model_validate({"model": "tiny", "pytorch": {"num_threads": 1}}),
        model_path=str(folder),
        prompts=(),
        spool="unused",
        devices=(),
    )
    made = PyTorchBackend()
    made.load(job)
    return made


@pytest.mark.proves("prompts.synthetic.prompt_tokens", on="transformers 5.23.0")
def test_synthetic_prompts_are_of_ordinary_tokens_and_exactly_as_long(backend: PyTorchBackend) -> None:
    prompts = backend.synthesise([(0, 7), (1, 100)], 5)
    assert [len(prompt.token_ids) for prompt in prompts] == [7, 100]
    tokenizer = backend._live.tokenizer  # type: ignore[union-attr]
    assert not {token for prompt in prompts for token in prompt.token_ids} & set(tokenizer.all_special_ids)
    assert len(set(prompts[1].token_ids)) > 50


def test_the_likelihood_of_a_text_is_what_transformers_itself_says(backend: PyTorchBackend) -> None:
    live = backend._live
    assert live is not None
    text = perplexity_text()[:300]
    nats, tokens = backend.score(text)
    ids = torch.tensor([live.token_ids(text, chat_template=False)])
    with torch.inference_mode():
        loss = live.model(input_ids=ids, labels=ids).loss
    assert tokens == ids.shape[1] - 1
    assert nats / tokens == pytest.approx(float(loss), rel=1e-4)


def test_a_text_longer_than_the_context_is_scored_in_stretches(backend: PyTorchBackend) -> None:
    live = backend._live
    assert live is not None
    text = perplexity_text() * 2
    _, tokens = backend.score(text)
    whole = len(live.token_ids(text, chat_template=False))
    stretch = min(1024, live.model.config.max_position_embeddings)
    assert tokens == whole - -(-whole // stretch)


@pytest.mark.anyio
@pytest.mark.usefixtures("worker_environment")
@pytest.mark.proves("prefill_probe", "quality", on="transformers 5.23.0")
async def test_the_probe_and_the_quality_come_after_the_window(
    server: FakeServer, work: Work, model_cache: Path
) -> None:
    attempt = server.enqueue(
        backend="pytorch",
        model="builtin:tiny-llama",
        output={"max_tokens": 4},
        window={"min_duration_s": 0, "min_requests": 4},
        warmup={"enabled": False},
        pytorch={"batch_size": 2, "num_threads": 1},
        prefill_probe=True,
        quality=True,
    )
    await work(modules=ProcessModules(), backend="pytorch", cache_dir=model_cache)
    assert attempt in server.completed, server.ended
    summary = server.markers[attempt, "rank-0"].summary
    requests = server.rows(attempt, "rank-0", StreamName.REQUESTS)
    assert {row["generated_tokens"] for row in requests} == {4}
    probe, quality = (json.loads(json.dumps(summary[name])) for name in ("prefill_probe", "quality"))
    assert (probe["requests"], probe["prompt_tokens"]) == (4, sum(row["prompt_tokens"] for row in requests))
    assert max(row["last_token_ns"] for row in requests) <= probe["begin_ns"] < probe["end_ns"]
    assert quality["text"] == "harbour-v1"
    assert quality["tokens"] > 100
    phases = [row["phase"] for row in server.rows(attempt, "rank-0", StreamName.PHASES) if row["edge"] == "begin"]
    assert phases[-3:] == ["measure", "prefill_probe", "quality"]


@pytest.mark.proves("prefill_probe", on="transformers 5.23.0")
def test_the_probe_gets_one_token_where_tokens_are_guessed_too(model_cache: Path) -> None:
    settings = {"prompt_lookup_tokens": 3, "num_threads": 1}
    job = RankJob(
        attempt_id="a",
        rank=0,
        world_size=1,
        config=ExperimentConfig.model_validate(
            {"model": "tiny", "pytorch": settings, "output": {"max_tokens": 8}, "window": {"min_duration_s": 0}}
        ),
        model_path=str(resolve_model("builtin:tiny-llama", cache_dir=model_cache).path_or_id),
        prompts=(),
        spool="unused",
        devices=(),
    )
    made = PyTorchBackend()
    made.load(job)
    prompts = made.prepare([(0, "Everyone is permitted to copy"), (1, "You may")])
    told = probe_prefill(
        made,
        prompts,
        job.config,
        rank=RankIndex(),
        progress=Ticker(PhaseName.LOAD, lambda _: None, 0),
        clock=time.monotonic_ns,
    )
    assert told["requests"] == 2
