"""What a rank measures after its window: prefill alone, and the quality of the model as it was run."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

from pydantic.types import JsonValue

from lem_domain.config.experiment import ExperimentConfig
from lem_domain.errors import LemError
from lem_domain.evidence.streams import PhaseName
from lem_domain.held_text import HELD_TEXT, held_text
from lem_worker.backends.protocol import InferenceBackend, ScoringBackend
from lem_worker.process.evidence_rows import Clock
from lem_worker.rank.measured_window import Share, measure
from lem_worker.rank.prompts import PreparedPrompt
from lem_worker.rank.recorder import ProgressSink, Recorder
from lem_worker.rank.window_length import Goal


class NotMeasurable(LemError):
    """A backend that can't do what is asked after the window."""


def probe_prefill(
    backend: InferenceBackend,
    prompts: Sequence[PreparedPrompt],
    config: ExperimentConfig,
    *,
    share: Share,
    progress: ProgressSink,
    clock: Clock,
) -> dict[str, JsonValue]:
    """Send the prompts for one token each, in whole repetitions for as long as a window lasts at least; all at once,
    however they arrived before. The answer is the probe's window and what was done in it.

    Raises:
        NotMeasurable: the backend generated more.
    """
    recorder = Recorder(PhaseName.PREFILL_PROBE, progress=progress, clock=clock)
    begin_ns = clock()
    measure(
        backend,
        [replace(prompt, max_tokens=1) for prompt in prompts],
        recorder,
        goal=Goal.of(config.window, world_size=share.world_size),
        seed=config.decoding.seed,
        between_batches=lambda: None,
        share=share,
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
    """Negative log-likelihood of the held text, in nats, and over how many tokens.

    Raises:
        NotMeasurable: the backend tells no likelihoods.
    """
    if not isinstance(backend, ScoringBackend):
        raise NotMeasurable("this backend tells no likelihoods; set quality to false.")
    text = held_text()
    nats, tokens = backend.score(text)
    digest = hashlib.sha256(text.encode()).hexdigest()
    return {"nats": nats, "tokens": tokens, "text": HELD_TEXT, "text_sha256": digest}
