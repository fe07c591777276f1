"""The batched prefill and decode loop; a token's time is taken when the device has finished it.

Rows are padded on the left to the longest of the batch, masked, and positioned by the mask. This generates the same
tokens as transformers' `generate`; a test compares both.
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

from lem_domain.backends.pytorch import PyTorchConfig
from lem_domain.config.experiment import DecodingConfig, OutputConfig
from lem_worker.backends.pytorch.model import LiveModel
from lem_worker.backends.pytorch.processors import make_processors
from lem_worker.rank.prompts import Request
from lem_worker.rank.recorder import IntArray, Recorder


@dataclass
class _Batch:
    """The rows of a batch. `prompt` is `[rows, longest prompt]`; the other tensors include the generated positions."""

    prompt: torch.Tensor
    mask: torch.Tensor | None
    positions: torch.Tensor
    """A single row for all where nothing is padded."""
    paddings: Sequence[int]
    """Number of padded positions of each row."""
    room: int
    """The most positions of a row, prompt and answer."""

    @property
    def prompt_length(self) -> int:
        """Length of the longest prompt."""
        return self.prompt.shape[1]


class _Forward:
    """Calls the model step by step on one batch, with a new cache if the configuration uses one."""

    def __init__(self, live: LiveModel, batch: _Batch, settings: PyTorchConfig, accepted: Collection[str]) -> None:
        self._forward = live.forward
        self._mask = batch.mask
        self._positions = batch.positions if "position_ids" in accepted else None
        self._prompt_length = batch.prompt_length
        self._single = batch.positions[:, batch.prompt_length :, None].unbind(dim=1)
        """The positions of generated tokens, split in advance: a slice in each step costs more."""
        self.cache = _make_cache(live, settings, length=batch.room)
        self._options: dict[str, object] = {"past_key_values": self.cache, "use_cache": self.cache is not None}
        if "logits_to_keep" in accepted:
            # Otherwise the prefill computes the logits of every position, which `generate` doesn't do either.
            self._options["logits_to_keep"] = 1

    def __call__(self, ids: torch.Tensor, begin: int, end: int) -> torch.Tensor:
        """The logits after position `end`; `ids` are the positions from `begin` on."""
        options = self._options
        if self._mask is not None:
            options["attention_mask"] = self._mask[:, :end]
        if self._positions is not None:
            single = begin >= self._prompt_length
            options["position_ids"] = self._single[begin - self._prompt_length] if single else self._positions[:, :end]
        logits: torch.Tensor = self._forward(input_ids=ids, **options).logits[:, -1]
        return logits


def _make_cache(live: LiveModel, settings: PyTorchConfig, *, length: int) -> DynamicCache | StaticCache | None:
    if not settings.use_cache:
        return None
    if settings.cache_implementation == "static":
        return StaticCache(config=live.model.config, max_cache_len=length)
    return DynamicCache(config=live.model.config)


CACHES = {"DynamicCache": "dynamic", "StaticCache": "static"}
"""The engine's cache classes and their names in `cache_implementation`."""


class _Ends:
    """Tracks which rows of a batch have ended, and at which length."""

    def __init__(self, rows: int, end_ids: torch.Tensor) -> None:
        self.live = torch.ones(rows, dtype=torch.bool, device=end_ids.device)
        self._end_ids = end_ids
        self._generated = torch.zeros(rows, dtype=torch.long, device=end_ids.device)

    def reached(self, chosen: torch.Tensor) -> bool:
        """Whether any row ended with these tokens, `[rows, 1]`."""
        self._generated += self.live
        ended = torch.isin(chosen[:, 0], self._end_ids) & self.live
        self.live &= ~ended
        return bool(ended.any())

    def lengths(self) -> list[int]:
        """Number of tokens of each row, the end of sequence included."""
        return self._generated.tolist()


class Decoder:
    """Decodes batches on a live model as configured."""

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
        """The tokens that end a row; empty in fixed mode."""
        self.samples = decoding.temperature > 0
        self.processors = LogitsProcessorList()
        """The processors of the last batch."""
        self.cache: str | None = None
        """The kind of cache that the last probe filled; None for none."""
        self._generator = torch.Generator(live.device)
        self._end = torch.tensor(self.end_ids, dtype=torch.long, device=live.device)
        self._padding_id = live.padding_id

    @torch.inference_mode()
    def probe(self, requests: Sequence[Request]) -> int:
        """Prefill the requests as one batch and return the number of rows that the model worked on."""
        batch = self._assemble(requests)
        self.processors = self._processors_for(batch)
        forward = _Forward(self._live, batch, self._settings, self._accepted)
        rows = int(forward(batch.prompt, 0, batch.prompt_length).shape[0])
        filled = forward.cache is not None and int(forward.cache.get_seq_length()) == batch.prompt_length
        self.cache = CACHES.get(type(forward.cache).__name__) if filled else None
        return rows

    @torch.inference_mode()
    def run(self, requests: Sequence[Request], recorder: Recorder, *, batch_id: int) -> None:
        """Run one batch from prefill to the last token of the last row."""
        request_ids = np.array([request.request_id for request in requests], dtype=np.int64)
        recorder.scheduled(request_ids, recorder.clock(), batch_id)
        batch = self._assemble(requests)
        self.processors = self._processors_for(batch)
        if self.samples:
            self._generator.manual_seed(requests[0].seed)
        rows = self._decode(batch, request_ids, recorder, requests[0].max_tokens or self._max_tokens)
        for request_id, ids in zip(request_ids.tolist(), rows, strict=True):
            recorder.finished(request_id, "stop" if ids[-1] in self.end_ids else "length", ids)

    def _decode(self, batch: _Batch, request_ids: IntArray, recorder: Recorder, most: int) -> list[list[int]]:
        """Decode up to `most` tokens per row and return them.

        A step does no more than the shortest possible loop plus one look at the clock. Only processors and models
        without a cache, which need all tokens so far, make it keep them in one tensor.
        """
        forward = _Forward(self._live, batch, self._settings, self._accepted)
        device = self._live.device
        on_cuda = device.type == "cuda"
        end = batch.prompt_length
        whole = self._with_room(batch) if self.processors or forward.cache is None else None
        ends = _Ends(len(request_ids), self._end) if self.end_ids else None
        recorded = request_ids
        begin, ids, columns = 0, batch.prompt, []
        for _ in range(most):
            chosen = self._choose(forward(ids, begin, end), ids if whole is None else whole[:, :end])
            columns.append(chosen)
            if on_cuda:  # kernels run asynchronously; without this the time would be that of their launch
                torch.cuda.synchronize(device)
            recorder.tokens(recorded, recorder.clock())
            if ends is not None and ends.reached(chosen):
                # Ended rows stay in the batch, as in `generate`, but are no longer recorded.
                recorded = request_ids[ends.live.cpu().numpy()]
                if not len(recorded):
                    break
            if whole is not None:
                whole[:, end : end + 1] = chosen
            if forward.cache is not None:
                begin, ids = end, chosen
            elif whole is not None:
                ids = whole[:, : end + 1]
            end += 1
        rows: list[list[int]] = torch.cat(columns, dim=1).tolist()
        return rows if ends is None else [row[:length] for row, length in zip(rows, ends.lengths(), strict=True)]

    def _with_room(self, batch: _Batch) -> torch.Tensor:
        room = batch.prompt.new_full((len(batch.prompt), batch.room - batch.prompt_length), self._padding_id)
        return torch.cat([batch.prompt, room], dim=1)

    def _choose(self, logits: torch.Tensor, sequence: torch.Tensor) -> torch.Tensor:
        """The next token of each row, `[rows, 1]`."""
        if not self.samples and not self.processors:
            return logits.argmax(dim=-1, keepdim=True)
        scores = self.processors(cast("torch.LongTensor", sequence), logits.to(dtype=torch.float32, copy=True))
        if not self.samples:
            return scores.argmax(dim=-1, keepdim=True)
        probabilities = torch.softmax(scores, dim=-1)
        return torch.multinomial(probabilities, num_samples=1, generator=self._generator)

    def _assemble(self, requests: Sequence[Request]) -> _Batch:
        device = self._live.device
        longest = max(len(request.token_ids) for request in requests)
        paddings = [longest - len(request.token_ids) for request in requests]
        rows = [
            (self._padding_id,) * padding + request.token_ids
            for padding, request in zip(paddings, requests, strict=True)
        ]
        room = longest + self._max_tokens
        every = torch.arange(room, device=device)[None, :]
        prompt = torch.tensor(rows, dtype=torch.long, device=device)
        if not any(paddings):
            # Like `generate`, without a mask where nothing is padded: the kernels are faster then.
            return _Batch(prompt, None, every, paddings, room)
        positions = every - torch.tensor(paddings, device=device)[:, None]
        return _Batch(prompt, (positions >= 0).long(), positions.clamp(min=0), paddings, room)

    def _processors_for(self, batch: _Batch) -> LogitsProcessorList:
        return make_processors(
            self._decoding,
            min_tokens=self._min_tokens,
            end_ids=self.end_ids,
            prompt_length=batch.prompt_length,
            device=self._live.device,
            paddings=batch.paddings,
        )

    def facts(self) -> dict[str, JsonValue]:
        """No facts beyond the recorded requests and tokens."""
        return {}
