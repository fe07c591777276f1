"""The PyTorch backend: transformers models in lockstep batches.

Its own loop decodes them, or transformers' assisted generation where tokens are drafted. The engine is imported in
`load`, not before, because OpenMP reads the number of threads from the environment when it is loaded.
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
from lem_worker.backends.pytorch import batching, log_filters
from lem_worker.backends.tokenizer import TokenizingBackend
from lem_worker.process.protocol import RankJob
from lem_worker.rank.prompts import Request, with_few_tokens
from lem_worker.rank.recorder import Recorder

if TYPE_CHECKING:
    from lem_worker.backends.pytorch.decoding import Decoder
    from lem_worker.backends.pytorch.model import LiveModel
    from lem_worker.backends.pytorch.speculation import SpeculativeDecoder


class PyTorchBackend(TokenizingBackend):
    """One model in this process, one batch at a time."""

    def __init__(self) -> None:
        self._live: LiveModel | None = None
        self._decoder: Decoder | SpeculativeDecoder | None = None
        self._batches = 0
        self._graphs_before: int | None = None
        """Number of graphs that were compiled before the window."""

    def load(self, job: RankJob) -> None:
        """Load model and tokenizer.

        Raises:
            BackendUnavailable: torch or transformers is not installed.
        """
        settings = job.config.section(PyTorchConfig)
        log_filters.set_environment()
        if settings.num_threads is not None:
            os.environ["OMP_NUM_THREADS"] = str(settings.num_threads)
        wants_torchao = settings.quantization is not None and settings.quantization.torchao is not None
        try:
            with log_filters.importing(torchao_is_asked_for=wants_torchao):
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

    def batches(self, requests: Sequence[Request]) -> Iterator[Sequence[Request]]:
        """Divide requests as `pytorch.batching` asks."""
        return batching.batches(requests, self._settings(), max_new_tokens=self._config.output.max_tokens)

    def compiles(self) -> bool:
        """Whether the configuration asks for compilation."""
        return self._settings().compiles

    def compile(self, requests: Sequence[Request], waiting: int | None = None) -> None:
        """Run one batch of each shape, so that nothing compiles inside the window.

        Open and closed traffic have many shapes. With dynamic shapes the third and later ones run only until their
        steps repeat.
        """
        most = self._config.output.max_tokens
        compiled, graphs = loaded(loaded(self._live).compiled), 0
        found = batching.shapes(requests, self._settings(), max_new_tokens=most, waiting=waiting)
        for number, batch in enumerate(found):
            is_short = waiting is not None and number > 1 and compiled.dynamic
            sent = with_few_tokens(batch, most) if is_short else batch
            recorder = Recorder(PhaseName.COMPILE)
            recorder.release(sent, recorder.clock())
            self.run(sent, recorder)
            if compiled.gave_up and compiled.graphs == graphs:
                return  # torch runs the remaining shapes uncompiled
            graphs = compiled.graphs

    def effective_config(self, sample: Sequence[Request]) -> EffectiveConfig:
        """Read back the live model; one prefill of `sample` shows the number of rows that the model gets."""
        from lem_worker.backends.pytorch import readback  # noqa: PLC0415 - needs torch

        rows = self._ready().probe(sample)
        return EffectiveConfig(
            engine=f"transformers {importlib.metadata.version('transformers')}, "
            f"torch {importlib.metadata.version('torch')}",
            parameters=readback.parameters(
                loaded(self._job), loaded(self._live), self._ready(), rows=rows, expected_rows=len(sample)
            ),
        )

    def run(self, requests: Sequence[Request], recorder: Recorder) -> None:
        """Decode the requests as one batch in lockstep.

        Raises:
            OptionRefused: an option needs compiled code and the compilation fails.
        """
        from lem_worker.backends import torch_device  # noqa: PLC0415 - need torch
        from lem_worker.backends.pytorch.compile import naming_the_option  # noqa: PLC0415 - need torch

        if self._graphs_before is None and recorder.phase is PhaseName.MEASURE:
            self._graphs_before = self._graphs()
            torch_device.reset_peak_memory(loaded(self._live).device)
        with naming_the_option(self._settings()):
            self._ready().run(requests, recorder, batch_id=self._batches)
        self._batches += 1

    def facts(self) -> dict[str, JsonValue]:
        """Sizes of the model, and the peak memory of its tensors in the window."""
        from lem_worker.backends import model_facts, torch_device  # noqa: PLC0415 - need torch

        live = loaded(self._live)
        facts: dict[str, JsonValue] = {
            "model": model_facts.model_facts(live.model),
            "peak_device_memory_bytes": torch_device.peak_memory_bytes(live.device),
            "peak_kv_cache_usage": None,
            "unknown": {
                "peak_kv_cache_usage": "each batch allocates its own keys and values; there is no pool",
                **({} if live.device.type == "cuda" else {"peak_device_memory_bytes": "the model is on the CPU"}),
            },
            **self._ready().facts(),
        }
        if live.compiled is not None:
            in_window = live.compiled.graphs - (self._graphs_before or 0)
            facts["compilation"] = {**live.compiled.facts(), "compiled_graphs_in_window": in_window}
        return facts

    def score(self, text: str) -> tuple[float, int]:
        """Score by teacher forcing, in segments as long as the model's context."""
        from lem_worker.backends.pytorch.quality import negative_log_likelihood  # noqa: PLC0415 - needs torch

        return negative_log_likelihood(loaded(self._live), text)

    def unload(self) -> None:
        """Free the model's memory."""
        if self._live is not None:
            self._live.release()
        self._live = self._decoder = None

    @property
    def _tokens(self) -> LiveModel:
        return loaded(self._live)

    def _ready(self) -> Decoder | SpeculativeDecoder:
        if self._decoder is None:
            raise NotLoaded
        return self._decoder

    def _graphs(self) -> int:
        compiled = loaded(self._live).compiled
        return 0 if compiled is None else compiled.graphs

    def _settings(self) -> PyTorchConfig:
        return self._config.section(PyTorchConfig)
