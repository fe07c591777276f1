"""The PyTorch backend: transformers models in lockstep batches, decoded by a loop of our own or, where tokens are
drafted, by transformers' assisted generation.

Nothing of the engine is imported before `load`: the number of threads must stand in the environment by then.
"""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from pydantic.types import JsonValue

from lem_domain.backends.pytorch import PyTorchConfig
from lem_domain.evidence.streams import PhaseName
from lem_domain.wire.runs import EffectiveConfig
from lem_worker.backends.create import missing_package
from lem_worker.backends.protocol import NotLoaded, loaded
from lem_worker.backends.pytorch import batching as pytorch_batching
from lem_worker.backends.pytorch import log_filters
from lem_worker.process.protocol import RankJob
from lem_worker.rank.prompts import PreparedPrompt, Request, fit, with_few_tokens
from lem_worker.rank.recorder import Recorder
from lem_worker.rank.synthetic_prompts import synthetic_prompts

if TYPE_CHECKING:
    from lem_worker.backends.pytorch.decoding import Decoder
    from lem_worker.backends.pytorch.model import LiveModel
    from lem_worker.backends.pytorch.speculation import SpeculativeDecoder


class PyTorchBackend:
    """One model in this process, one batch at a time."""

    def __init__(self) -> None:
        self._live: LiveModel | None = None
        self._decoder: Decoder | SpeculativeDecoder | None = None
        self._job: RankJob | None = None
        self._batches = 0
        self._graphs_before: int | None = None
        """How many graphs were compiled before the window."""

    def load(self, job: RankJob) -> None:
        """Bring model and tokenizer up.

        Raises:
            BackendUnavailable: torch or transformers is not installed.
        """
        settings = job.config.section(PyTorchConfig)
        log_filters.set_environment()
        if settings.num_threads is not None:
            os.environ["OMP_NUM_THREADS"] = str(settings.num_threads)
        asked_for = settings.quantization is not None and settings.quantization.torchao is not None
        try:
            with log_filters.importing(torchao_is_asked_for=asked_for):
                from lem_worker.backends.pytorch import decoding, model, speculation  # noqa: PLC0415
        except ImportError as error:
            raise missing_package("pytorch", error) from error
        self._job = job
        self._live = model.load(job)
        parts = self._live, job.config.decoding, job.config.output, settings
        if settings.speculates:
            self._decoder = speculation.SpeculativeDecoder(*parts)
        else:
            self._decoder = decoding.Decoder(*parts)

    def prepare(self, prompts: Sequence[tuple[int, str]]) -> list[PreparedPrompt]:
        """Tokenise, truncate, and see that prompt and answer fit into the model's context."""
        live, config = loaded(self._live), loaded(self._job).config
        prepared = [
            fit(index, live.token_ids(text, chat_template=config.prompts.chat_template), config.input)
            for index, text in prompts
        ]
        return self._within_context(prepared)

    def synthesise(self, lengths: Sequence[tuple[int, int]], seed: int) -> list[PreparedPrompt]:
        """Ids of the tokenizer that stand for text, within the model's context."""
        vocabulary = loaded(self._live).ordinary_ids()
        limits = loaded(self._job).config.input
        return self._within_context(synthetic_prompts(lengths, vocabulary, seed=seed, limits=limits))

    def _within_context(self, prepared: list[PreparedPrompt]) -> list[PreparedPrompt]:
        for prompt in prepared:
            loaded(self._live).check_context(prompt, loaded(self._job).config.output.max_tokens)
        return prepared

    def batches(self, requests: Sequence[Request]) -> Iterator[Sequence[Request]]:
        """As `pytorch.batching` says."""
        return pytorch_batching.batches(
            requests, self._settings(), max_new_tokens=loaded(self._job).config.output.max_tokens
        )

    def compiles(self) -> bool:
        """Whether the first batches of each shape will be compiled."""
        return self._settings().compiles

    def compile(self, requests: Sequence[Request], waiting: int | None = None) -> None:
        """Run one batch of each shape, so that nothing is left to compile in the window.

        Under traffic there are many of them: with dynamic shapes, those after the first two are decoded no further
        than their steps go on differing.
        """
        most = loaded(self._job).config.output.max_tokens
        compiled, graphs = loaded(loaded(self._live).compiled), 0
        found = pytorch_batching.shapes(requests, self._settings(), max_new_tokens=most, waiting=waiting)
        for place, batch in enumerate(found):
            in_short = waiting is not None and place > 1 and compiled.dynamic
            sent = with_few_tokens(batch, most) if in_short else batch
            recorder = Recorder(PhaseName.COMPILE)
            recorder.release(sent, recorder.clock())
            self.run(sent, recorder)
            if compiled.gave_up and compiled.graphs == graphs:
                return  # the other shapes run as they are
            graphs = compiled.graphs

    def effective_config(self, sample: Sequence[Request]) -> EffectiveConfig:
        """Read back from the live model; one prefill of `sample` tells how many rows the model really gets."""
        from lem_worker.backends.pytorch import readback as pytorch_readback  # noqa: PLC0415 - needs torch

        rows = self._ready().probe(sample)
        return EffectiveConfig(
            engine=f"transformers {importlib.metadata.version('transformers')}, "
            f"torch {importlib.metadata.version('torch')}",
            parameters=pytorch_readback.parameters(
                loaded(self._job), loaded(self._live), self._ready(), rows=rows, expected_rows=len(sample)
            ),
        )

    def run(self, requests: Sequence[Request], recorder: Recorder) -> None:
        """Decode the requests as one batch in lockstep.

        Raises:
            OptionRefused: something has to be compiled for them and can't be.
        """
        from lem_worker.backends import torch_device  # noqa: PLC0415 - need torch
        from lem_worker.backends.pytorch import compile as pytorch_compile  # noqa: PLC0415 - need torch

        if self._graphs_before is None and recorder.phase is PhaseName.MEASURE:
            self._graphs_before = self._graphs()
            torch_device.reset_peak_memory(loaded(self._live).device)
        with pytorch_compile.naming_what_asks_for_it(self._settings()):
            self._ready().run(requests, recorder, batch_id=self._batches)
        self._batches += 1

    def facts(self) -> dict[str, JsonValue]:
        """Sizes of the model, and the most memory that its tensors held in the window."""
        from lem_worker.backends import model_facts, torch_device  # noqa: PLC0415 - need torch

        live = loaded(self._live)
        facts: dict[str, JsonValue] = {
            "model": model_facts.model_facts(live.model),
            "peak_device_memory_bytes": torch_device.peak_memory_bytes(live.device),
            "peak_kv_cache_usage": None,
            "unknown": {
                "peak_kv_cache_usage": "each batch has keys and values of its own and no pool of them",
                **({} if live.device.type == "cuda" else {"peak_device_memory_bytes": "the model is on the CPU"}),
            },
            **self._ready().facts(),
        }
        if live.compiled is not None:
            in_window = live.compiled.graphs - (self._graphs_before or 0)
            facts["compilation"] = {**live.compiled.facts(), "compiled_graphs_in_window": in_window}
        return facts

    def text(self, token_ids: Sequence[int]) -> str:
        """Without special tokens."""
        return loaded(self._live).text(token_ids)

    def score(self, text: str) -> tuple[float, int]:
        """Teacher-forced, in stretches as long as the model's context."""
        from lem_worker.backends.pytorch import quality as pytorch_quality  # noqa: PLC0415 - needs torch

        return pytorch_quality.negative_log_likelihood(loaded(self._live), text)

    def unload(self) -> None:
        """Free the model's memory."""
        if self._live is not None:
            self._live.release()
        self._live = self._decoder = None

    def _ready(self) -> Decoder | SpeculativeDecoder:
        if self._decoder is None:
            raise NotLoaded
        return self._decoder

    def _graphs(self) -> int:
        compiled = loaded(self._live).compiled
        return 0 if compiled is None else compiled.graphs

    def _settings(self) -> PyTorchConfig:
        return loaded(self._job).config.section(PyTorchConfig)
