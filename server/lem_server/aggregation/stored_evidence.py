"""Reads one attempt from the database: its facts, and its chunks one after another."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncEngine

from lem_domain.config.experiment import ExperimentConfig
from lem_domain.evidence.streams import SAMPLER, StreamManifest, StreamName, rank_name
from lem_domain.ids import IdKind, format_id
from lem_domain.results.method import MethodVersion
from lem_domain.wire.runs import EffectiveConfig
from lem_domain.wire.workers import Device
from lem_server.aggregation.inputs import AggregationInput, AggregationParameters, ChunkSource
from lem_server.aggregation.queries import RunToAggregate
from lem_server.evidence import reading

Wait = Callable[..., Any]
"""Runs a coroutine function with its arguments on the engine's event loop and returns its result."""


async def load_inputs(
    engine: AsyncEngine,
    run: RunToAggregate,
    attempt_id: UUID,
    parameters: AggregationParameters,
    method: MethodVersion,
) -> AggregationInput:
    """Load the facts of a run's attempt."""
    config = ExperimentConfig.model_validate(run.config)
    return AggregationInput(
        run_id=format_id(IdKind.RUN, run.run_id),
        attempt_id=format_id(IdKind.ATTEMPT, attempt_id),
        config=config,
        devices=tuple(Device.model_validate(device) for device in run.devices or ()),
        processes=(*(rank_name(rank) for rank in range(config.processes)), SAMPLER),
        manifest=tuple(StreamManifest.model_validate(one) for one in run.manifest or ()),
        held=await reading.streams_of(engine, attempt_id),
        summaries=await reading.summaries_of(engine, attempt_id),
        effective_config=(
            None if run.effective_config is None else EffectiveConfig.model_validate(run.effective_config)
        ),
        parameters=parameters,
        method=method,
    )


def chunk_source(engine: AsyncEngine, attempt_id: UUID, wait: Wait) -> ChunkSource:
    """Return a source that reads each chunk in a separate statement.

    A long computation must not hold a snapshot: it would keep PostgreSQL from vacuuming.
    """

    def chunks(process: str, stream: StreamName) -> Iterator[tuple[int, bytes]]:
        seq = -1
        while True:
            found = wait(reading.next_body, engine, attempt_id, process, stream, seq)
            if found is None:
                return
            seq = found[0]
            yield found

    return chunks
