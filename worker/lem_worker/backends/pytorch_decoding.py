"""The batched prefill and decode loop, with the time of every token taken when the device is done with it.

Rows are padded on the left to the longest of the batch, masked, and positioned by the mask, which gives the same
tokens as transformers' own `generate` (a test holds both against each other).
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from pydantic.types import JsonValue
from transformers import DynamicCache, StaticCache
from transformers.generation.logits_process import LogitsProcessorList

from lem_domain.config.experiment import DecodingConfig, OutputConfig
from lem_domain.config.pytorch import PyTorchConfig
from lem_worker.backends.pytorch_model import LiveModel
from lem_worker.backends.pytorch_processors import make_processors
from lem_worker.prompts import Request
from lem_worker.recorder import IntArray, Recorder


@dataclass
class _Batch:
    """The rows of a batch; the tensors but `padding` have room for what will be generated."""

    sequence: torch.Tensor
    mask: torch.Tensor | None
    positions: torch.Tensor
    padding: torch.Tensor
    prompt_length: int


class _Forward:
    """Calls the model step by step on one batch, with a cache of its own where the configuration has one."""

    def __init__(self, live: LiveModel, batch: _Batch, settings: PyTorchConfig, accepted: Collection[str]) -> None:
        self._forward = live.forward
        self._batch = batch
        self._takes_positions = "position_ids" in accepted
        self.cache = _make_cache(live, settings, length=batch.sequence.shape[1])
        self._options: dict[str, object] = {"past_key_values": self.cache, "use_cache": self.cache is not None}
        if "logits_to_keep" in accepted:
            # Without it the prefill would compute the logits of every position, which generate doesn't do either.
            self._options["logits_to_keep"] = 1
        self._done = 0

    def __call__(self, length: int) -> torch.Tensor:
        """The logits after the first `length` places of the sequence; called with growing lengths."""
        batch, done = self._batch, self._done
        if batch.mask is not None:
            self._options["attention_mask"] = batch.mask[:, :length]
        if self._takes_positions:
            self._options["position_ids"] = batch.positions[:, done:length]
        output = self._forward(input_ids=batch.sequence[:, done:length], **self._options)
        if self.cache is not None:
            self._done = length
        logits: torch.Tensor = output.logits[:, -1]
        return logits


def _make_cache(live: LiveModel, settings: PyTorchConfig, *, length: int) -> DynamicCache | StaticCache | None:
    if not settings.use_cache:
        return None
    if settings.cache_implementation == "static":
        return StaticCache(config=live.model.config, max_cache_len=length)
    return DynamicCache(config=live.model.config)


CACHES = {"DynamicCache": "dynamic", "StaticCache": "static"}
"""What `cache_implementation` calls the engine's classes."""


class Decoder:
    """Runs batches of a live model as the configuration says."""

    def __init__(
        self, live: LiveModel, decoding: DecodingConfig, output: OutputConfig, settings: PyTorchConfig
    ) -> None:
        self._live = live
        self._settings = settings
        self._accepted = frozenset(inspect.signature(live.model.forward).parameters)
        self._decoding = decoding
        self._max_tokens = output.max_tokens
        self._min_tokens = output.min_tokens
        self.end_ids = live.end_ids if output.mode == "natural" else ()
        """The tokens that end a row; none in fixed mode."""
        self.samples = decoding.temperature > 0
        self.processors = LogitsProcessorList()
        """Those of the last batch."""
        self.cache: str | None = None
        """The kind of cache that the last probe's prefill filled; None for none."""
        self._generator = torch.Generator(live.device)
        self._end = torch.tensor(self.end_ids, dtype=torch.long, device=live.device)

    @torch.inference_mode()
    def probe(self, requests: Sequence[Request]) -> int:
        """Prefill the requests as one batch; the answer is the number of rows that the model worked on."""
        batch = self._assemble(requests)
        self.processors = self._processors_for(batch)
        forward = _Forward(self._live, batch, self._settings, self._accepted)
        rows = int(forward(batch.prompt_length).shape[0])
        filled = forward.cache is not None and int(forward.cache.get_seq_length()) == batch.prompt_length
        self.cache = CACHES.get(type(forward.cache).__name__) if filled else None
        return rows

    @torch.inference_mode()
    def run(self, requests: Sequence[Request], recorder: Recorder, *, batch_id: int) -> None:
        """One batch from prefill to the last row's last token."""
        request_ids = np.array([request.request_id for request in requests], dtype=np.int64)
        recorder.scheduled(request_ids, recorder.clock(), batch_id)
        batch = self._assemble(requests)
        self.processors = self._processors_for(batch)
        self._generator.manual_seed(requests[0].seed)
        lengths = self._decode(batch, request_ids, recorder, requests[0].max_tokens or self._max_tokens)
        generated = batch.sequence[:, batch.prompt_length :].tolist()
        for request_id, row, length in zip(request_ids.tolist(), generated, lengths, strict=True):
            ids = row[:length]
            recorder.finished(request_id, "stop" if ids[-1] in self.end_ids else "length", ids)

    def _decode(self, batch: _Batch, request_ids: IntArray, recorder: Recorder, most: int) -> list[int]:
        """Fill the sequence; the answer is the number of tokens of each row."""
        forward = _Forward(self._live, batch, self._settings, self._accepted)
        on_cuda = self._live.device.type == "cuda"
        live = torch.ones(len(request_ids), dtype=torch.bool, device=self._live.device)
        recorded = request_ids
        lengths = torch.full_like(live, most, dtype=torch.long)
        for step in range(most):
            length = batch.prompt_length + step
            chosen = self._choose(forward(length), batch.sequence[:, :length])
            batch.sequence[:, length] = chosen
            if on_cuda:
                torch.cuda.synchronize(self._live.device)
            recorder.tokens(recorded, recorder.clock())
            if not self.end_ids:
                continue
            ended = torch.isin(chosen, self._end) & live
            if bool(ended.any()):
                lengths[ended] = step + 1
                live &= ~ended
                # Rows that have ended stay in the batch but are not recorded any more.
                recorded = request_ids[live.cpu().numpy()]
                if not len(recorded):
                    break
        return lengths.tolist()

    def _choose(self, logits: torch.Tensor, sequence: torch.Tensor) -> torch.Tensor:
        if not self.samples and not self.processors:
            return logits.argmax(dim=-1)
        scores = self.processors(cast("torch.LongTensor", sequence), logits.to(dtype=torch.float32, copy=True))
        if not self.samples:
            return scores.argmax(dim=-1)
        probabilities = torch.softmax(scores, dim=-1)
        return torch.multinomial(probabilities, num_samples=1, generator=self._generator)[:, 0]

    def _assemble(self, requests: Sequence[Request]) -> _Batch:
        longest = max(len(request.token_ids) for request in requests)
        paddings = [longest - len(request.token_ids) for request in requests]
        room = [self._live.padding_id] * self._max_tokens
        rows = [
            [self._live.padding_id] * padding + list(request.token_ids) + room
            for padding, request in zip(paddings, requests, strict=True)
        ]
        sequence = torch.tensor(rows, dtype=torch.long, device=self._live.device)
        padding = torch.tensor(paddings, dtype=torch.long, device=self._live.device)
        places = torch.arange(sequence.shape[1], device=self._live.device)
        # Like generate, no mask at all where nothing is padded: the kernels are faster then.
        mask = (places[None, :] >= padding[:, None]).long() if any(paddings) else None
        positions = (places[None, :] - padding[:, None]).clamp(min=0)
        return _Batch(sequence, mask, positions, padding, longest)

    def _processors_for(self, batch: _Batch) -> LogitsProcessorList:
        return make_processors(
            self._decoding,
            min_tokens=self._min_tokens,
            end_ids=self.end_ids,
            prompt_length=batch.prompt_length,
            device=self._live.device,
            padding=batch.padding,
        )

    def facts(self) -> dict[str, JsonValue]:
        """Nothing beyond what requests and tokens say."""
        return {}
