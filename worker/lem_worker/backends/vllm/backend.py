"""The vLLM backend: an engine that batches continuously, stepped in this process.

Nothing of the engine is imported before `load`: what its environment says must stand there by then.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, TypeVar

from pydantic.types import JsonValue

from lem_domain.config.experiment import BackendName
from lem_domain.errors import LemError
from lem_domain.wire.runs import EffectiveConfig
from lem_worker.backends import CudaManagement, RuntimeCapabilities, missing_package
from lem_worker.backends.installed import LaunchMode
from lem_worker.backends.vllm.options import environment, options_of, require_devices
from lem_worker.process.failures import BackendUnavailable
from lem_worker.process.protocol import RankJob
from lem_worker.rank.prompts import PreparedPrompt, Request, fit
from lem_worker.rank.recorder import Recorder
from lem_worker.rank.request_feed import Intake
from lem_worker.rank.synthetic_prompts import synthetic_prompts

if TYPE_CHECKING:
    from lem_worker.backends.vllm.engine import LiveEngine

T = TypeVar("T")


class NotLoaded(LemError):
    """Something was asked of an engine that isn't there."""


class VllmBackend:
    """One engine in this process; with several devices, its workers are processes that this one starts."""

    def __init__(self) -> None:
        self._engine: LiveEngine | None = None
        self._job: RankJob | None = None

    def capabilities(self) -> RuntimeCapabilities:
        """One process that manages its own devices, and lets nobody touch CUDA before it."""
        return RuntimeCapabilities(LaunchMode.DIRECT, CudaManagement.BACKEND)

    def load(self, job: RankJob) -> None:
        """Bring the engine up.

        Raises:
            BackendUnavailable: vLLM is not installed, or can't be imported.
            EngineRefused: the devices, the model or an option don't fit, or there is too little memory.
        """
        require_devices(job)
        environment(job)
        try:
            from lem_worker.backends.vllm import engine as vllm_engine  # noqa: PLC0415 - see the module's text
        except ImportError as error:
            raise missing_package(BackendName.VLLM, error) from error
        except Exception as error:
            raise BackendUnavailable(
                f"vLLM is installed and can't be imported ({type(error).__name__}: {error}); build this worker's "
                "environment as docs/backends.md says."
            ) from error
        self._job = job
        self._engine = vllm_engine.load(job, options_of(job))

    def prepare(self, prompts: Sequence[tuple[int, str]]) -> list[PreparedPrompt]:
        """Tokenise, truncate, and see that prompt and answer fit into the engine's context."""
        engine, config = _need(self._engine), _need(self._job).config
        return self._within_context(
            fit(index, engine.token_ids(text, chat_template=config.prompts.chat_template), config.input)
            for index, text in prompts
        )

    def synthesise(self, lengths: Sequence[tuple[int, int]], seed: int) -> list[PreparedPrompt]:
        """Ids of the engine's tokenizer that stand for text, within its context."""
        vocabulary = _need(self._engine).ordinary_ids()
        limits = _need(self._job).config.input
        return self._within_context(synthetic_prompts(lengths, vocabulary, seed=seed, limits=limits))

    def _within_context(self, prompts: Iterable[PreparedPrompt]) -> list[PreparedPrompt]:
        engine, most = _need(self._engine), _need(self._job).config.output.max_tokens
        prepared = list(prompts)
        for prompt in prepared:
            engine.check_context(prompt, most)
        return prepared

    def in_flight(self) -> int:
        """The most sequences of a step."""
        return _need(self._engine).max_num_seqs

    def effective_config(self, sample: Sequence[Request]) -> EffectiveConfig:
        """Read back from the live engine, its scheduler and its workers; one request tells what sampling it gets."""
        from lem_worker.backends.vllm import readback as vllm_readback  # noqa: PLC0415 - needs vllm

        return vllm_readback.effective_config(_need(self._job).config, _need(self._engine), sample[0])

    def serve(self, intake: Intake, recorder: Recorder) -> None:
        """Step the engine until the intake is over and all is done."""
        _need(self._engine).serve(intake, recorder)

    def facts(self) -> dict[str, JsonValue]:
        """Sizes of the model, memory of its workers, and what the engine counted in the window."""
        return _need(self._engine).facts()

    def text(self, token_ids: Sequence[int]) -> str:
        """Without special tokens."""
        return _need(self._engine).text(token_ids)

    def unload(self) -> None:
        """End the engine and its workers."""
        if self._engine is not None:
            self._engine.shut_down()
        self._engine = None


def _need(thing: T | None) -> T:
    if thing is None:
        raise NotLoaded("the vLLM backend is not loaded; call load first.")
    return thing
