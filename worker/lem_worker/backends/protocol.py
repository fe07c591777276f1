"""The protocol between a rank and an inference engine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol, TypeVar, runtime_checkable

from pydantic.types import JsonValue

from lem_domain.errors import LemError
from lem_domain.wire.runs import EffectiveConfig
from lem_worker.process.protocol import RankJob
from lem_worker.rank.prompts import PreparedPrompt, Request
from lem_worker.rank.recorder import Recorder
from lem_worker.rank.request_feed import RequestFeed

T = TypeVar("T")


class _Backend(Protocol):
    """An engine in a rank's process, however it batches requests."""

    def load(self, job: RankJob) -> None:
        """Load the engine and its model."""

    def prepare(self, prompts: Sequence[tuple[int, str]]) -> list[PreparedPrompt]:
        """Tokenise (index, text) pairs within the configuration's limits; never called inside the window."""

    def effective_config(self, sample: Sequence[Request]) -> EffectiveConfig:
        """Read the configuration back from the live engine.

        `sample` is the batch with the most rows. A backend may run it where only a run shows what is in force.
        """

    def facts(self) -> dict[str, JsonValue]:
        """Facts of the loaded model and of the window, read once as soon as the window is over.

        `model` holds sizes for the estimate of the model's work. `peak_device_memory_bytes` and `peak_kv_cache_usage`
        are of the window; `unknown` holds the reason of each of these that is None.
        """

    def text(self, token_ids: Sequence[int]) -> str:
        """Decode generated tokens."""

    def unload(self) -> None:
        """Release the engine and its memory."""


@runtime_checkable
class LockstepBackend(_Backend, Protocol):
    """Works on one batch at a time: the next begins when the last row of this one is done."""

    def batches(self, requests: Sequence[Request]) -> Iterator[Sequence[Request]]:
        """Divide waiting requests into batches, in the order in which they are sent."""

    def run(self, requests: Sequence[Request], recorder: Recorder) -> None:
        """Run the requests as one batch, record them, and return when all are done."""


@runtime_checkable
class ContinuousBackend(_Backend, Protocol):
    """Accepts requests at any time and owns the loop that runs them (`lem_worker.rank.request_feed`)."""

    def in_flight(self) -> int:
        """The most sequences that the engine works on in one step."""

    def serve(self, feed: RequestFeed, recorder: Recorder) -> None:
        """Take requests until the feed is over and all are done, and record them."""


@runtime_checkable
class CompilingBackend(LockstepBackend, Protocol):
    """Compiles its model for new shapes, all of which must occur before the window."""

    def compiles(self) -> bool:
        """Whether the configuration asks for compilation."""

    def compile(self, requests: Sequence[Request], waiting: int | None = None) -> None:
        """Run the shapes of all batches that the window can have.

        `waiting` is None where all requests are there from the beginning. Otherwise they arrive one by one, and up to
        `waiting` of them may form a batch.
        """


@runtime_checkable
class SyntheticBackend(Protocol):
    """Makes prompts of a given length."""

    def synthesise(self, lengths: Sequence[tuple[int, int]], seed: int) -> list[PreparedPrompt]:
        """For each (index, tokens) pair a prompt of exactly so many ordinary tokens of the model's tokenizer."""


@runtime_checkable
class ScoringBackend(Protocol):
    """Computes the likelihood of a text."""

    def score(self, text: str) -> tuple[float, int]:
        """Negative log-likelihood of a text in nats, and the number of predicted tokens that it is summed over."""


InferenceBackend = LockstepBackend | ContinuousBackend


class NotLoaded(LemError):
    """A backend was used before `load` or after `unload`."""

    def __init__(self) -> None:
        super().__init__("the backend is not loaded; call load first.")


def loaded(part: T | None) -> T:
    """The part of a backend that `load` creates.

    Raises:
        NotLoaded: there is none.
    """
    if part is None:
        raise NotLoaded
    return part
