"""Routes of the configuration: the JSON Schema of a campaign file, its keys, the backends and the presets."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from lem_domain.backends.registry import BackendName
from lem_domain.config.keys import Key
from lem_domain.config.presets import builtin_presets
from lem_domain.config.schema import campaign_file_schema, campaign_keys, experiment_keys
from lem_domain.wire.access import Scope
from lem_domain.wire.schema import BackendView, KeyView, PresetView, SchemaView
from lem_server.access.guard import declares
from lem_server.context import Context
from lem_server.workers import service as workers

router = APIRouter(prefix="/api/v1", tags=["configuration"])


@router.get("/schema", **declares(Scope.READ))
async def get_schema() -> SchemaView:
    """Return every key of a campaign and of an experiment, and the presets."""
    presets = tuple(
        PresetView(name=one.name, description=one.description, values=dict(one.values))
        for one in builtin_presets().values()
    )
    return SchemaView(
        campaign=tuple(map(_key, campaign_keys())), experiment=tuple(map(_key, experiment_keys())), presets=presets
    )


@router.get("/schema/campaign", **declares(Scope.READ))
async def get_campaign_schema() -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of a campaign file."""
    return campaign_file_schema()


@router.get("/backends", **declares(Scope.READ))
async def list_backends(context: Context) -> tuple[BackendView, ...]:
    """List the backends with the keys of their sections and the number of their workers online."""
    online = await workers.online_by_backend(context.engine, context.settings.lease_terms)
    return tuple(_backend(name, online.get(name.value, 0)) for name in BackendName)


def _backend(name: BackendName, online: int) -> BackendView:
    section, *keys = (key for key in experiment_keys() if key.section == name)
    return BackendView(
        name=name.value, description=section.description, keys=tuple(map(_key, keys)), workers_online=online
    )


def _key(key: Key) -> KeyView:
    return KeyView.model_validate(key._asdict())
