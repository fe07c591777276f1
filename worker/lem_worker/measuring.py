"""The measured window of one rank: whole repetitions of its prompts until the asked length is reached.

Traffic is `offline`: a batch is released when the one before it is done, as many requests at a time as the backend
takes. A request's arrival is therefore the moment its batch is handed to the backend, and queueing behind earlier
batches is no part of its latency.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lem_domain.config.experiment import WindowConfig
from lem_domain.evidence import PhaseName
from lem_worker.backends import InferenceBackend
from lem_worker.process_protocol import Message, Tick
from lem_worker.prompts import PreparedPrompt, batches, requests_of
from lem_worker.recorder import Recorder

_TICK_NS = 500_000_000
"""The protocol allows about two ticks a second."""


@dataclass(frozen=True, slots=True)
class Goal:
    """The least that a rank's window holds."""

    duration_ns: int
    requests: int

    @classmethod
    def of(cls, window: WindowConfig, *, world_size: int) -> Goal:
        """The rank's part: the whole duration, and its share of the requests rounded up."""
        return cls(round(window.min_duration_s * 1e9), -(-window.min_requests // world_size))

    def is_met(self, duration_ns: int, requests: int) -> bool:
        """Whether both minima hold."""
        return duration_ns >= self.duration_ns and requests >= self.requests

    def fraction(self, duration_ns: int, requests: int, *, share: int) -> float:
        """How much of the window is over, as far as foreseeable; requests count in whole repetitions of `share`."""
        needed = share * max(1, -(-self.requests // share))
        elapsed = duration_ns / self.duration_ns if self.duration_ns else 1.0
        return max(0.0, min(1.0, elapsed, requests / needed))


class Ticker:
    """Turns progress into ticks, at most two a second."""

    def __init__(
        self,
        phase: PhaseName,
        send: Callable[[Message], None],
        begin_ns: int,
        fraction: Callable[[int, int], float] | None = None,
    ) -> None:
        self._phase = phase
        self._send = send
        self._fraction = fraction
        self._begin_ns = begin_ns
        self._last_ns = begin_ns
        self._last_tokens = 0

    def due_ns(self) -> int:
        """When to be told next."""
        return self._last_ns + _TICK_NS

    def report(self, now_ns: int, *, requests_done: int, generated_tokens: int) -> None:
        """Send a tick with the rate since the last one."""
        rate = (generated_tokens - self._last_tokens) / ((now_ns - self._last_ns) / 1e9)
        fraction = self._fraction(now_ns - self._begin_ns, requests_done) if self._fraction is not None else None
        self._last_ns, self._last_tokens = now_ns, generated_tokens
        self._send(
            Tick(
                phase=self._phase,
                requests_done=requests_done,
                generated_tokens=generated_tokens,
                fraction=fraction,
                output_rate_tok_s=rate,
            )
        )


def measure(
    backend: InferenceBackend,
    prompts: Sequence[PreparedPrompt],
    recorder: Recorder,
    *,
    goal: Goal,
    seed: int,
    max_tokens: int,
    between_batches: Callable[[], None],
) -> int:
    """Run the window; the answer is the number of repetitions."""
    begin_ns = recorder.clock()
    repetition = 0
    while True:
        requests = requests_of(prompts, repetition=repetition, first_id=repetition * len(prompts), seed=seed)
        for batch in batches(requests, backend.in_flight()):
            recorder.reserve(len(batch) * max_tokens)
            recorder.release(batch, recorder.clock())
            backend.run(batch, recorder)
            recorder.drain()
            between_batches()
        repetition += 1
        if goal.is_met(recorder.last_token_ns - begin_ns, recorder.requests_done):
            return repetition
