"""The inputs of an aggregation: the facts of one attempt, and a source of its chunks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from pydantic import BaseModel, ConfigDict, Field
from pydantic.types import JsonValue

from lem_domain.config.calibration import DeviceCalibration
from lem_domain.config.experiment import ExperimentConfig
from lem_domain.evidence.streams import SAMPLER, StreamManifest, StreamName
from lem_domain.ids import AttemptId, RunId
from lem_domain.results.method import DEFAULT_METHOD, MethodVersion
from lem_domain.wire.runs import EffectiveConfig, StreamView
from lem_domain.wire.workers import Device

ChunkSource = Callable[[str, StreamName], Iterable[tuple[int, bytes]]]
"""Returns the stored (seq, body) pairs of a process and stream, in any order. It is called once per stored stream, one
stream after another, so that it may read lazily."""

Summaries = Mapping[str, Mapping[str, JsonValue]]
"""The summary in each process's completion marker, by process; no entry without a marker."""


class AggregationParameters(BaseModel):
    """Parameters of an aggregation; part of the aggregate's key."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    allow_partial: bool = Field(
        default=False,
        description="Compute from incomplete evidence; the result is marked invalid and lists what is missing.",
    )
    calibration: tuple[DeviceCalibration, ...] | None = Field(
        default=None,
        exclude_if=lambda value: value is None,
        description="Calibrations instead of the configuration's (`energy.calibration`).",
    )

    @property
    def stored_calibration(self) -> list[JsonValue] | None:
        """The calibrations as they are stored with an aggregate."""
        return None if self.calibration is None else [one.model_dump(mode="json") for one in self.calibration]


@dataclass(frozen=True, kw_only=True)
class AggregationInput:
    """The facts of one attempt, as the database stores them.

    `devices` are the leased ones in order (`device_index` of the power stream points here); `processes` are all that
    must finish, including the sampler; `manifest` is the attempt's (empty if it never completed); `held` lists the
    acknowledged chunks with their digests.
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
    method: MethodVersion = DEFAULT_METHOD

    @property
    def calibration(self) -> tuple[DeviceCalibration, ...]:
        """The calibrations to apply."""
        given = self.parameters.calibration
        return self.config.energy.calibration if given is None else given

    @property
    def ranks(self) -> tuple[str, ...]:
        """The expected ranks, by number."""
        return tuple(sorted((name for name in self.processes if name != SAMPLER), key=process_order))


def process_order(process: str) -> tuple[bool, int]:
    """Return a sort key: ranks by number (rank-2 before rank-10), the sampler last."""
    return process == SAMPLER, 0 if process == SAMPLER else int(process.removeprefix("rank-"))
