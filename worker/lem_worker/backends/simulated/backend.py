"""The simulated backend: sleeps for the configured times and fails at the configured points."""

from __future__ import annotations

import math
import os
import random
import signal
import threading
import time
import zlib
from collections.abc import Iterator, Sequence

import numpy as np
from pydantic.types import JsonValue

from lem_domain.backends.simulated import SimulatedConfig, SimulatedFailure
from lem_domain.config.experiment import OutputConfig
from lem_domain.errors import LemError
from lem_domain.evidence.streams import PhaseName
from lem_domain.wire.runs import EffectiveConfig
from lem_worker.backends.protocol import loaded
from lem_worker.backends.readback import compared, compared_keys
from lem_worker.process.protocol import RankJob
from lem_worker.rank.prompts import PreparedPrompt, Request, batches_of, synthetic_prompts, truncate_prompt
from lem_worker.rank.recorder import Recorder

_VOCABULARY = 50_000
_EXIT_CODE = 3
_SIGNALS = {"kill": signal.SIGKILL, "abort": signal.SIGABRT, "segfault": signal.SIGSEGV}


class SimulatedEngineError(LemError):
    """The configured failure."""


class SimulatedBackend:
    """Lockstep batches.

    The prefill of a batch takes the time of its prompt tokens and generates the first token of each row. Every further
    step generates one token in each row that has not ended.
    """

    def __init__(self) -> None:
        self._config = SimulatedConfig()
        self._job: RankJob | None = None
        self._jitter = random.Random(0)
        self._batches = 0

    def load(self, job: RankJob) -> None:
        """Sleep for `load_s`."""
        self._job = job
        self._config = job.config.section(SimulatedConfig)
        self._jitter = random.Random(job.config.decoding.seed * 65_536 + job.rank)
        if (failure := self._failure("load")) is not None:
            fail(failure)
        time.sleep(self._config.load_s)

    def prepare(self, prompts: Sequence[tuple[int, str]]) -> list[PreparedPrompt]:
        """Make one token of each word; its id is a checksum."""
        limits = loaded(self._job).config.input
        return [
            truncate_prompt(index, [zlib.crc32(word.encode()) % _VOCABULARY for word in text.split()], limits)
            for index, text in prompts
        ]

    def synthesise(self, lengths: Sequence[tuple[int, int]], seed: int) -> list[PreparedPrompt]:
        """Prompts of ids from the whole vocabulary."""
        return synthetic_prompts(lengths, range(_VOCABULARY), seed=seed, limits=loaded(self._job).config.input)

    def batches(self, requests: Sequence[Request]) -> Iterator[Sequence[Request]]:
        """Divide the requests in order by the batch size."""
        return batches_of(requests, self._config.batch_size)

    def effective_config(self, sample: Sequence[Request]) -> EffectiveConfig:  # noqa: ARG002 - nothing to run
        """The configuration itself, except for the keys in `misreport`."""
        config, job = self._config, loaded(self._job)
        batch_size = config.batch_size + ("batch_size" in config.misreport)
        processes = job.world_size + ("num_processes" in config.misreport)
        mode = job.config.output.mode
        return EffectiveConfig(
            engine="simulated",
            parameters=(
                *compared_keys("simulated", config, {"batch_size": batch_size, "num_processes": processes}),
                compared("output.mode", mode, mode),
            ),
        )

    def run(self, requests: Sequence[Request], recorder: Recorder) -> None:
        """Run one batch on a grid of deadlines, so that a late wake-up doesn't delay the next step."""
        failure = self._failure(recorder.phase.value)
        output = loaded(self._job).config.output
        outputs = [self._answer(request, output) for request in requests]
        failing = self._failing(requests, recorder.phase)
        lengths = np.array(
            [1 if one.request_id in failing else len(ids) for one, ids in zip(requests, outputs, strict=True)],
            dtype=np.int64,
        )
        request_ids = np.array([request.request_id for request in requests], dtype=np.int64)
        prompt_tokens = sum(len(request.token_ids) for request in requests)
        deadline = recorder.clock()
        recorder.scheduled(request_ids, deadline, batch_id=self._batches)
        self._batches += 1
        deadline += self._duration_ns(self._config.prefill_ms_per_token * prompt_tokens)
        for step in range(int(lengths.max())):
            if step:
                deadline += self._duration_ns(self._config.decode_ms_per_token)
                if failure is not None:
                    fail(failure)
            recorder.tokens(request_ids[lengths > step], _sleep_until(deadline, recorder))
        if failure is not None:  # a batch of a single step has no second step to fail in
            fail(failure)
        for request, ids in zip(requests, outputs, strict=True):
            if request.request_id in failing:
                recorder.failed(
                    request.request_id,
                    "the simulated engine failed the request after its first token, as simulated.failed_share asks.",
                )
                continue
            recorder.finished(request.request_id, "length" if len(ids) == output.max_tokens else "stop", ids)

    def facts(self) -> dict[str, JsonValue]:
        """None: there is no model."""
        return {}

    def text(self, token_ids: Sequence[int]) -> str:
        """Write the ids."""
        return " ".join(str(token_id) for token_id in token_ids)

    def unload(self) -> None:
        """Forget the job."""
        if (failure := self._failure("cleanup")) is not None:
            fail(failure)
        self._job = None

    def _answer(self, request: Request, output: OutputConfig) -> list[int]:
        salt = request.repetition if self._config.nondeterministic else 0
        return generated_ids(request.token_ids, output, salt)[: request.max_tokens or output.max_tokens]

    def _failing(self, requests: Sequence[Request], phase: PhaseName) -> frozenset[int]:
        """The ids of requests to fail, spread evenly over the window."""
        share = self._config.failed_share
        if phase is not PhaseName.MEASURE:
            return frozenset()
        ids = (request.request_id for request in requests)
        return frozenset(one for one in ids if math.floor((one + 1) * share) > math.floor(one * share))

    def _failure(self, phase: str) -> SimulatedFailure | None:
        failure = self._config.fail
        return failure if failure and failure.at == phase and failure.process == loaded(self._job).rank else None

    def _duration_ns(self, milliseconds: float) -> int:
        spread = self._config.jitter
        factor = 1 + self._jitter.uniform(-spread, spread) if spread else 1.0
        return round(milliseconds * factor * 1e6)


def generated_ids(prompt: Sequence[int], output: OutputConfig, salt: int = 0) -> list[int]:
    """The answer of the simulated model, a function of prompt and salt.

    In natural mode it ends between `min_tokens` and `max_tokens`, in fixed mode exactly at `max_tokens`.
    """
    state = zlib.crc32(repr(tuple(prompt)).encode()) + salt
    count = output.max_tokens
    if output.mode == "natural":
        least = max(1, output.min_tokens)
        count = least + state % (output.max_tokens - least + 1)
    return [(state + 7919 * index) % _VOCABULARY for index in range(count)]


def fail(failure: SimulatedFailure) -> None:
    """Produce the failure."""
    match failure.how:
        case "raise":
            raise SimulatedEngineError(f"the simulated engine failed in {failure.at}, as simulated.fail asks for.")
        case "out_of_memory":
            raise MemoryError(f"the simulated engine is out of memory in {failure.at}, as simulated.fail asks for.")
        case "hang":
            threading.Event().wait()
        case "silence":
            while True:
                time.sleep(0.01)
        case "exit":
            os._exit(_EXIT_CODE)
        case _:
            os.kill(os.getpid(), _SIGNALS[failure.how])


def _sleep_until(deadline_ns: int, recorder: Recorder) -> int:
    while (left := deadline_ns - (now := recorder.clock())) > 0:
        time.sleep(left / 1e9)
    return now
