"""Measurements of a rank after its window: prefill alone, and the quality of the model as configured."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

from pydantic.types import JsonValue

from lem_domain.config.experiment import ExperimentConfig
from lem_domain.errors import LemError
from lem_domain.evidence.streams import PhaseName
from lem_domain.prompt_sets import PERPLEXITY_TEXT, perplexity_text
from lem_worker.backends.protocol import InferenceBackend, ScoringBackend
from lem_worker.process.evidence_rows import Clock
from lem_worker.rank.measured_window import RankIndex, measure
from lem_worker.rank.prompts import PreparedPrompt
from lem_worker.rank.recorder import ProgressSink, Recorder
from lem_worker.rank.window_length import WindowLength


class NotMeasurable(LemError):
    """The backend does not support a measurement after the window."""


def probe_prefill(
    backend: InferenceBackend,
    prompts: Sequence[PreparedPrompt],
    config: ExperimentConfig,
    *,
    rank: RankIndex,
    progress: ProgressSink,
    clock: Clock,
) -> dict[str, JsonValue]:
    """Send the prompts for one token each, in whole repetitions for the minimum length of a window.

    They arrive all at once, whatever the traffic of the window was. Returns the probe's window and its counts.

    Raises:
        NotMeasurable: the backend generated more than one token.
    """
    recorder = Recorder(PhaseName.PREFILL_PROBE, progress=progress, clock=clock)
    begin_ns = clock()
    measure(
        backend,
        [replace(prompt, max_tokens=1) for prompt in prompts],
        recorder,
        length=WindowLength.of(config.window, world_size=rank.world_size),
        seed=config.decoding.seed,
        flush_evidence=lambda: None,
        rank=rank,
    )
    if recorder.generated_tokens != recorder.requests_done:
        raise NotMeasurable(
            f"the {config.backend.value} backend can't generate one token alone; set prefill_probe to false."
        )
    return {
        "begin_ns": begin_ns,
        "end_ns": recorder.last_token_ns,
        "requests": recorder.requests_done,
        "prompt_tokens": recorder.prompt_tokens,
    }


def score_quality(backend: InferenceBackend) -> dict[str, JsonValue]:
    """Measure the negative log-likelihood of the reference text, in nats, and its number of tokens.

    Raises:
        NotMeasurable: the backend computes no likelihoods.
    """
    if not isinstance(backend, ScoringBackend):
        raise NotMeasurable("this backend computes no likelihoods; set quality to false.")
    text = perplexity_text()
    nats, tokens = backend.score(text)
    digest = hashlib.sha256(text.encode()).hexdigest()
    return {"nats": nats, "tokens": tokens, "text": PERPLEXITY_TEXT, "text_sha256": digest}
