"""The simulated backend."""

from __future__ import annotations

from typing import Any

import pytest

from conformance.backends.suite import TEXTS, TOKENS, BackendConformance, Rig
from factories import one_rank
from lem_domain.states import FailureReason
from lem_worker.process.protocol import RankJob


def job(**config: Any) -> RankJob:
    settings = {"batch_size": 2, **config.pop("simulated", {})}
    return one_rank.job("m", TEXTS, backend="simulated", output={"max_tokens": TOKENS}, simulated=settings, **config)


class TestSimulated(BackendConformance):
    name = "simulated"

    @pytest.fixture(scope="class")
    @classmethod
    def rig(cls) -> Rig:
        fail = {"at": "load", "how": "raise"}
        return Rig(job, lambda: job(simulated={"fail": fail}), FailureReason.BACKEND_INITIALISATION)
