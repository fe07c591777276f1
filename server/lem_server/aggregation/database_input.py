"""One attempt as the database holds it: the facts, and its chunks for a computation that knows no event loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncEngine

from lem_domain.config.experiment import ExperimentConfig
from lem_domain.evidence.streams import SAMPLER, StreamManifest, StreamName, rank_name
from lem_domain.ids import IdKind, format_id
from lem_domain.wire.runs import EffectiveConfig
from lem_domain.wire.workers import Device
from lem_server.aggregation.inputs import AggregationInput, AggregationParameters, ChunkSource
from lem_server.aggregation.queries import RunRow
from lem_server.evidence import reading

Wait = Callable[..., Any]
"""Runs a coroutine function with its arguments on the loop that the engine belongs to, and gives what it returned."""


async def stored_inputs(
    engine: AsyncEngine, row: RunRow, attempt_id: UUID, parameters: AggregationParameters
) -> AggregationInput:
    """The facts of a run's attempt, `row` being what the run itself says."""
    config = ExperimentConfig.model_validate(row.config)
    return AggregationInput(
        run_id=format_id(IdKind.RUN, row.run_id),
        attempt_id=format_id(IdKind.ATTEMPT, attempt_id),
        config=config,
        devices=tuple(Device.model_validate(device) for device in row.devices or ()),
        processes=(*(rank_name(rank) for rank in range(config.processes)), SAMPLER),
        manifest=tuple(StreamManifest.model_validate(one) for one in row.manifest or ()),
        held=await reading.streams_of(engine, attempt_id),
        summaries=await reading.summaries_of(engine, attempt_id),
        effective_config=(
            None if row.effective_config is None else EffectiveConfig.model_validate(row.effective_config)
        ),
        parameters=parameters,
    )


def stored_chunks(engine: AsyncEngine, attempt_id: UUID, wait: Wait) -> ChunkSource:
    """Chunks one after another, each in a short statement of its own: no snapshot is held over a long computation."""

    def chunks(process: str, stream: StreamName) -> Iterator[tuple[int, bytes]]:
        seq = -1
        while True:
            found = wait(reading.next_body, engine, attempt_id, process, stream, seq)
            if found is None:
                return
            seq = found[0]
            yield found

    return chunks
