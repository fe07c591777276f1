"""The PyTorch backend: transformers models in static batches, decoded by a loop of our own.

Nothing of the engine is imported before `load`: the number of threads must stand in the environment by then.
"""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

from pydantic.types import JsonValue

from lem_domain.config.experiment import BackendName
from lem_domain.config.pytorch import PyTorchConfig
from lem_domain.errors import LemError
from lem_domain.wire.runs import EffectiveConfig
from lem_worker.backends import CudaManagement, LaunchMode, RuntimeCapabilities, missing_package
from lem_worker.process_protocol import RankJob
from lem_worker.prompts import PreparedPrompt, Request, fit
from lem_worker.recorder import Recorder
from lem_worker.synthetic import synthetic_prompts

if TYPE_CHECKING:
    from lem_worker.backends.pytorch_decoding import Decoder
    from lem_worker.backends.pytorch_model import LiveModel

T = TypeVar("T")

_QUIET = {
    "TOKENIZERS_PARALLELISM": "false",  # threads of the tokenizer would compete with the measured ones
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}


class NotLoaded(LemError):
    """Something was asked of a model that isn't there."""


class PyTorchBackend:
    """One model in this process, one batch at a time."""

    def __init__(self) -> None:
        self._live: LiveModel | None = None
        self._decoder: Decoder | None = None
        self._job: RankJob | None = None
        self._batches = 0

    def capabilities(self) -> RuntimeCapabilities:
        """One rank per accelerator, started by accelerate."""
        return RuntimeCapabilities(LaunchMode.ACCELERATE, CudaManagement.LAUNCHER)

    def load(self, job: RankJob) -> None:
        """Bring model and tokenizer up.

        Raises:
            BackendUnavailable: torch or transformers is not installed.
        """
        settings = job.config.pytorch or PyTorchConfig()
        for name, value in _QUIET.items():
            os.environ.setdefault(name, value)
        if settings.num_threads is not None:
            os.environ["OMP_NUM_THREADS"] = str(settings.num_threads)
        try:
            from lem_worker.backends import pytorch_decoding, pytorch_model  # noqa: PLC0415 - see the module's text
        except ImportError as error:
            raise missing_package(BackendName.PYTORCH, error) from error
        self._job = job
        self._live = pytorch_model.load(job)
        self._decoder = pytorch_decoding.Decoder(self._live, job.config.decoding, job.config.output)

    def prepare(self, prompts: Sequence[tuple[int, str]]) -> list[PreparedPrompt]:
        """Tokenise, truncate, and see that prompt and answer fit into the model's context."""
        live, config = _need(self._live), _need(self._job).config
        prepared = [
            fit(index, live.token_ids(text, chat_template=config.prompts.chat_template), config.input)
            for index, text in prompts
        ]
        return self._within_context(prepared)

    def synthesise(self, lengths: Sequence[tuple[int, int]], seed: int) -> list[PreparedPrompt]:
        """Ids of the tokenizer that stand for text, within the model's context."""
        vocabulary = _need(self._live).ordinary_ids()
        limits = _need(self._job).config.input
        return self._within_context(synthetic_prompts(lengths, vocabulary, seed=seed, limits=limits))

    def _within_context(self, prepared: list[PreparedPrompt]) -> list[PreparedPrompt]:
        for prompt in prepared:
            _need(self._live).check_context(prompt, _need(self._job).config.output.max_tokens)
        return prepared

    def in_flight(self) -> int:
        """The batch size."""
        return self._settings().batch_size

    def effective_config(self, sample: Sequence[Request]) -> EffectiveConfig:
        """Read back from the live model; one prefill of `sample` tells how many rows the model really gets."""
        from lem_worker.backends import pytorch_readback  # noqa: PLC0415 - needs torch

        rows = _need(self._decoder).probe(sample)
        return EffectiveConfig(
            engine=f"transformers {importlib.metadata.version('transformers')}, "
            f"torch {importlib.metadata.version('torch')}",
            parameters=pytorch_readback.parameters(
                _need(self._job).config, _need(self._live), _need(self._decoder), rows=rows
            ),
        )

    def run(self, requests: Sequence[Request], recorder: Recorder) -> None:
        """Decode the requests as one batch in lockstep."""
        _need(self._decoder).run(requests, recorder, batch_id=self._batches)
        self._batches += 1

    def facts(self) -> dict[str, JsonValue]:
        """Sizes of the model, and the most memory that its tensors held."""
        from lem_worker.backends import pytorch_facts  # noqa: PLC0415 - needs torch

        live = _need(self._live)
        return {
            "model": pytorch_facts.model_facts(live.model),
            "peak_device_memory_bytes": pytorch_facts.peak_memory_bytes(live.device),
        }

    def text(self, token_ids: Sequence[int]) -> str:
        """Without special tokens."""
        return _need(self._live).text(token_ids)

    def score(self, text: str) -> tuple[float, int]:
        """Teacher-forced, in stretches as long as the model's context."""
        from lem_worker.backends import pytorch_quality  # noqa: PLC0415 - needs torch

        return pytorch_quality.negative_log_likelihood(_need(self._live), text)

    def unload(self) -> None:
        """Free the model's memory."""
        if self._live is not None:
            self._live.release()
        self._live = self._decoder = None

    def _settings(self) -> PyTorchConfig:
        return _need(self._job).config.pytorch or PyTorchConfig()


def _need(thing: T | None) -> T:
    if thing is None:
        raise NotLoaded("the PyTorch backend is not loaded; call load first.")
    return thing
