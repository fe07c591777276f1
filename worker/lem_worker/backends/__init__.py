"""The protocol between a rank and an inference engine, and the table of engines."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol, cast, runtime_checkable

from pydantic.types import JsonValue

from lem_domain.config.experiment import BackendName
from lem_domain.wire.runs import EffectiveConfig
from lem_worker.backends.installed import LaunchMode
from lem_worker.process.failures import BackendUnavailable
from lem_worker.process.protocol import RankJob
from lem_worker.rank.prompts import PreparedPrompt, Request
from lem_worker.rank.recorder import Recorder
from lem_worker.rank.request_feed import Intake


class CudaManagement(StrEnum):
    """Who may touch CUDA first: nobody before the engine's own process, or whoever started it."""

    BACKEND = "backend"
    LAUNCHER = "launcher"


@dataclass(frozen=True)
class RuntimeCapabilities:
    """How a backend wants to be run."""

    launch_mode: LaunchMode
    cuda_management: CudaManagement


class _Backend(Protocol):
    """An engine in a rank's process, whatever its way of batching."""

    def capabilities(self) -> RuntimeCapabilities:
        """How it wants to be run; known before it is loaded."""

    def load(self, job: RankJob) -> None:
        """Bring the engine up."""

    def prepare(self, prompts: Sequence[tuple[int, str]]) -> list[PreparedPrompt]:
        """Tokenise (index, text) pairs, within the limits of the configuration; never inside the window."""

    def effective_config(self, sample: Sequence[Request]) -> EffectiveConfig:
        """What the live engine says is in force; `sample` is the largest batch, to be tried where that tells more."""

    def facts(self) -> dict[str, JsonValue]:
        """What the loaded model is and used: `model` for the estimate of its work; of the window,
        `peak_device_memory_bytes` and `peak_kv_cache_usage`; `unknown` has the reasons of those that are None. Asked
        once, as soon as the window is over."""

    def text(self, token_ids: Sequence[int]) -> str:
        """Generated tokens as text."""

    def unload(self) -> None:
        """Let go of everything."""


@runtime_checkable
class LockstepBackend(_Backend, Protocol):
    """Works on one batch at a time: the next begins when the last row of this one is done."""

    def batches(self, requests: Sequence[Request]) -> Iterator[Sequence[Request]]:
        """Divide requests that wait into batches, the one to be sent first at the front."""

    def run(self, requests: Sequence[Request], recorder: Recorder) -> None:
        """Send the requests as one batch, tell the recorder what becomes of them, and return when all are done."""


@runtime_checkable
class ContinuousBackend(_Backend, Protocol):
    """Accepts requests at any time and owns the loop that runs them (`lem_worker.rank.request_feed`)."""

    def in_flight(self) -> int:
        """The most sequences that it works on in one step."""

    def serve(self, intake: Intake, recorder: Recorder) -> None:
        """Take requests from the intake until it is over and all are done, and tell the recorder what becomes of each:
        when it was scheduled, when tokens came, and how it ended."""


@runtime_checkable
class CompilingBackend(LockstepBackend, Protocol):
    """Compiles its model when it meets new shapes, which must all be met before the window."""

    def compiles(self) -> bool:
        """Whether the configuration asks for it."""

    def compile(self, requests: Sequence[Request], waiting: int | None = None) -> None:
        """Meet the shapes of all batches of the requests; where they arrive by themselves, and up to `waiting` of them
        wait at once, of all batches that could be made of those."""


@runtime_checkable
class SyntheticBackend(Protocol):
    """Can make prompts of a length."""

    def synthesise(self, lengths: Sequence[tuple[int, int]], seed: int) -> list[PreparedPrompt]:
        """Prompts of exactly so many ordinary tokens of its own tokenizer, for (index, tokens) pairs."""


@runtime_checkable
class ScoringBackend(Protocol):
    """Can tell how likely a text is."""

    def score(self, text: str) -> tuple[float, int]:
        """Negative log-likelihood of a text in nats, summed over the tokens that it has something to predict from, and
        the number of those."""


InferenceBackend = LockstepBackend | ContinuousBackend


@dataclass(frozen=True)
class _Entry:
    module: str
    factory: str
    extra: str


_BACKENDS = {
    BackendName.PYTORCH: _Entry("lem_worker.backends.pytorch.backend", "PyTorchBackend", "pytorch"),
    BackendName.VLLM: _Entry("lem_worker.backends.vllm.backend", "VllmBackend", "vllm"),
    BackendName.TENSORRT: _Entry("lem_worker.backends.tensorrt.backend", "TensorrtBackend", "tensorrt"),
    BackendName.SIMULATED: _Entry("lem_worker.backends.simulated.backend", "SimulatedBackend", "worker"),
}


def create_backend(name: BackendName) -> InferenceBackend:
    """A backend that is not loaded yet; only the asked one's module is imported.

    Raises:
        BackendUnavailable: its engine is not installed.
    """
    entry = _BACKENDS[name]
    try:
        factory = getattr(importlib.import_module(entry.module), entry.factory)
    except ImportError as error:
        raise missing_package(name, error) from error
    return cast("InferenceBackend", factory())


def missing_package(name: BackendName, error: ImportError) -> BackendUnavailable:
    """The error for a package that a backend needs and that can't be imported."""
    extra = _BACKENDS[name].extra
    return BackendUnavailable(
        f"the {name.value} backend needs the package {error.name or 'named in: ' + str(error)}; "
        f"install llm-energy-measurement[{extra}] in this worker's environment."
    )
