"""The vLLM backend: a continuously batching engine, stepped in this process.

The engine is imported in `load`, not before, because it reads its environment variables on import.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic.types import JsonValue

from lem_domain.wire.runs import EffectiveConfig
from lem_worker.backends.create import missing_package
from lem_worker.backends.protocol import loaded
from lem_worker.backends.tokenizer import TokenizingBackend
from lem_worker.backends.vllm.options import environment, options_of, require_devices
from lem_worker.process.failures import BackendUnavailable
from lem_worker.process.protocol import RankJob
from lem_worker.rank.prompts import Request
from lem_worker.rank.recorder import Recorder
from lem_worker.rank.request_feed import RequestFeed

if TYPE_CHECKING:
    from lem_worker.backends.vllm.engine import VllmEngine


class VllmBackend(TokenizingBackend):
    """One engine in this process; with several devices, the engine starts worker processes."""

    def __init__(self) -> None:
        self._engine: VllmEngine | None = None

    def load(self, job: RankJob) -> None:
        """Load the engine and its model.

        Raises:
            BackendUnavailable: vLLM is not installed, or can't be imported.
            EngineRefused: the devices, the model or an option don't fit, or memory is too small.
        """
        require_devices(job)
        environment(job)
        try:
            from lem_worker.backends.vllm import engine as vllm_engine  # noqa: PLC0415 - see the module's docstring
        except ImportError as error:
            raise missing_package("vllm", error) from error
        except Exception as error:
            raise BackendUnavailable(
                f"vLLM is installed but can't be imported ({type(error).__name__}: {error}); build this worker's "
                "environment as docs/backends.md says."
            ) from error
        self._job = job
        self._engine = vllm_engine.load(job, options_of(job))

    def in_flight(self) -> int:
        """The most sequences of one step."""
        return loaded(self._engine).max_num_seqs

    def effective_config(self, sample: Sequence[Request]) -> EffectiveConfig:
        """Read back the live engine, its scheduler, its workers, and the sampling parameters of the first request."""
        from lem_worker.backends.vllm import readback as vllm_readback  # noqa: PLC0415 - needs vllm

        return vllm_readback.effective_config(self._config, loaded(self._engine), sample[0])

    def serve(self, feed: RequestFeed, recorder: Recorder) -> None:
        """Step the engine until the feed is over and all requests are done."""
        loaded(self._engine).serve(feed, recorder)

    def facts(self) -> dict[str, JsonValue]:
        """Sizes of the model, memory of its workers, and the engine's counters of the window."""
        return loaded(self._engine).facts()

    def unload(self) -> None:
        """Shut the engine and its workers down."""
        if self._engine is not None:
            self._engine.shut_down()
        self._engine = None

    @property
    def _tokens(self) -> VllmEngine:
        return loaded(self._engine)
