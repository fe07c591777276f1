"""Speculative decoding by transformers' assisted generation: drafted tokens are verified several at a time.

Tokens that are accepted in one step share one time. Drafted and accepted tokens are counted, so that a run shows
whether its speculation had an effect.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from pydantic.types import JsonValue
from transformers import GenerationConfig
from transformers.generation.logits_process import LogitsProcessorList
from transformers.generation.streamers import BaseStreamer

from lem_domain.backends.pytorch import PyTorchConfig
from lem_domain.config.experiment import DecodingConfig, OutputConfig
from lem_domain.evidence.streams import PhaseName
from lem_worker.backends.pytorch.decoding import CACHES
from lem_worker.backends.pytorch.model import LiveModel
from lem_worker.backends.pytorch.processors import make_processors
from lem_worker.rank.prompts import Request
from lem_worker.rank.recorder import Recorder


class _Steps(BaseStreamer):
    """Receives the prompt first and then the tokens of each step, and records them."""

    def __init__(self, request_id: int, recorder: Recorder, device: torch.device) -> None:
        self.token_ids: list[int] = []
        self.steps = 0
        self._request_id = request_id
        self._recorder = recorder
        self._device = device
        self._prompt_is_over = False

    def put(self, value: torch.Tensor) -> None:
        """Called by `generate`; the tensor is on the CPU, so the device has finished it."""
        if not self._prompt_is_over:
            self._prompt_is_over = True
            return
        now = self._recorder.clock()
        accepted = value.flatten().tolist()
        self.token_ids += accepted
        self.steps += 1
        self._recorder.tokens((self._request_id,) * len(accepted), now)

    def end(self) -> None:
        """Called by `generate` at the end."""


class SpeculativeDecoder:
    """Runs one request at a time through `generate`, with a drafting model or prompt lookup."""

    def __init__(
        self, live: LiveModel, decoding: DecodingConfig, output: OutputConfig, settings: PyTorchConfig
    ) -> None:
        self._live = live
        self._decoding = decoding
        self._output = output
        self.end_ids = live.end_ids if output.mode == "natural" else ()
        self.samples = decoding.temperature > 0
        self.processors = LogitsProcessorList()
        self.drafter: dict[str, JsonValue] = {}
        """Settings of the last request's live drafter, by the key of `pytorch`."""
        self.cache: str | None = None
        """The kind of cache of the last request."""
        self._steps = self._drafted = self._accepted = 0
        self._given: dict[str, Any] = {}
        if settings.prompt_lookup_tokens is not None:
            self._given["prompt_lookup_num_tokens"] = settings.prompt_lookup_tokens
        assistant = live.assistant
        if assistant is not None:
            self._given["assistant_model"] = assistant
            wanted = settings.assisted_decoding
            if wanted is not None and wanted.num_tokens is not None:
                # By default transformers adapts the number to the acceptance rate and stops early at low confidence.
                assistant.generation_config.num_assistant_tokens = wanted.num_tokens
                assistant.generation_config.num_assistant_tokens_schedule = "constant"
                assistant.generation_config.assistant_confidence_threshold = 0.0
        # Otherwise `generate` would fill unset options with the checkpoint's recommended sampling.
        live.model.generation_config = GenerationConfig()  # type: ignore[no-untyped-call]
        self._watch()

    def probe(self, requests: Sequence[Request]) -> int:
        """Generate for one request and return the number of rows, which is always 1."""
        recorder = Recorder(PhaseName.LOAD)
        recorder.release(requests[:1], recorder.clock())
        self.run(requests[:1], recorder, batch_id=0)
        return 1

    @torch.inference_mode()
    def run(self, requests: Sequence[Request], recorder: Recorder, *, batch_id: int) -> None:
        """Run one request from prefill to its last token."""
        (request,) = requests
        recorder.scheduled([request.request_id], recorder.clock(), batch_id)
        ids = torch.tensor([request.token_ids], dtype=torch.long, device=self._live.device)
        self.processors = make_processors(
            self._decoding,
            min_tokens=self._output.min_tokens,
            end_ids=self.end_ids,
            prompt_length=ids.shape[1],
            device=self._live.device,
        )
        steps = _Steps(request.request_id, recorder, self._live.device)
        drafted_before = self._drafted
        model: Any = self._live.model
        with torch.random.fork_rng(devices=[self._live.device] if self._live.device.type == "cuda" else []):
            torch.manual_seed(request.seed)
            model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                generation_config=GenerationConfig(  # type: ignore[no-untyped-call]
                    max_new_tokens=request.max_tokens or self._output.max_tokens,
                    do_sample=self.samples,
                    top_k=0,
                    eos_token_id=list(self.end_ids) or None,
                    pad_token_id=self._live.padding_id,
                ),
                logits_processor=self.processors,
                streamer=steps,
                **self._given,
            )
        if recorder.phase is PhaseName.MEASURE:
            self._steps += steps.steps
            self._accepted += len(steps.token_ids) - steps.steps
        else:
            self._drafted = drafted_before
        ended = steps.token_ids[-1] in self.end_ids
        recorder.finished(request.request_id, "stop" if ended else "length", steps.token_ids)

    def facts(self) -> dict[str, JsonValue]:
        """Counts of the window: forward passes of the measured model, drafted tokens and accepted tokens."""
        return {
            "speculation": {
                "steps": self._steps,
                "drafted_tokens": self._drafted,
                "accepted_tokens": self._accepted,
            }
        }

    def _watch(self) -> None:
        """Wrap the private hook by which `generate` creates drafters, to read and count them (transformers 5.23)."""
        model: Any = self._live.model
        make = model._get_candidate_generator

        def made(*arguments: Any, **named: Any) -> Any:
            generator = make(*arguments, **named)
            self.drafter = _of(generator)
            cache = named["model_kwargs"].get("past_key_values")
            self.cache = CACHES.get(type(cache).__name__)
            draft = generator.get_candidates

            def counted(ids: torch.Tensor, *more: Any, **also: Any) -> Any:
                candidates, logits = draft(ids, *more, **also)
                self._drafted += candidates.shape[1] - ids.shape[1]
                return candidates, logits

            generator.get_candidates = counted
            return generator

        model._get_candidate_generator = made


def _of(generator: Any) -> dict[str, JsonValue]:
    match type(generator).__name__:
        case "PromptLookupCandidateGenerator":
            return {"prompt_lookup_tokens": int(generator.num_output_tokens)}
        case "AssistedCandidateGenerator":
            assistant = generator.assistant_model
            settings = assistant.generation_config
            return {
                "assisted_decoding.model": str(assistant.config._name_or_path),
                "assisted_decoding.num_tokens": int(generator.num_assistant_tokens),
                "assisted_decoding.schedule": str(settings.num_assistant_tokens_schedule),
            }
        case other:
            return {"assisted_decoding.model": other}
