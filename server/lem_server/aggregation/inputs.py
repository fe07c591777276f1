"""What aggregation is given: the facts of one attempt, and a source of its chunks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from pydantic import BaseModel, ConfigDict, Field
from pydantic.types import JsonValue

from lem_domain.config.experiment import ExperimentConfig
from lem_domain.evidence.streams import SAMPLER, StreamManifest, StreamName
from lem_domain.ids import AttemptId, RunId
from lem_domain.wire.runs import EffectiveConfig, StreamView
from lem_domain.wire.workers import Device

ChunkSource = Callable[[str, StreamName], Iterable[tuple[int, bytes]]]
"""Given a process and a stream, the stored (seq, body) pairs in any order; asked once for every held stream, one stream
after another, so that it may read them lazily."""

Summaries = Mapping[str, Mapping[str, JsonValue]]
"""What each process said of itself in its completion marker, by process; no entry where there is no marker."""


class AggregationParameters(BaseModel):
    """What the user may ask of an aggregation; part of the aggregate's key."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    allow_partial: bool = Field(
        default=False,
        description="Compute from incomplete evidence; the result is marked invalid and says what is missing.",
    )


@dataclass(frozen=True, kw_only=True)
class AggregationInput:
    """The facts of one attempt, as the database holds them.

    `devices` are the leased ones in order (`device_index` of the power stream points here); `processes` are all that
    had to finish, the sampler included; `manifest` is the attempt's (empty when it never completed); `held` is what was
    acknowledged, with the digest of every chunk.
    """

    run_id: RunId
    attempt_id: AttemptId
    config: ExperimentConfig
    devices: tuple[Device, ...]
    processes: tuple[str, ...]
    manifest: tuple[StreamManifest, ...]
    held: tuple[StreamView, ...]
    summaries: Summaries
    effective_config: EffectiveConfig | None
    parameters: AggregationParameters = field(default_factory=AggregationParameters)

    @property
    def ranks(self) -> tuple[str, ...]:
        """The expected processes that run requests, by number."""
        return tuple(sorted((name for name in self.processes if name != SAMPLER), key=process_order))


def process_order(process: str) -> tuple[bool, int]:
    """Sort key: ranks by number (rank-2 before rank-10), the sampler last."""
    return process == SAMPLER, 0 if process == SAMPLER else int(process.removeprefix("rank-"))
