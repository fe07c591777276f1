"""Says who moves runs in this transaction; the database refuses every change of state without it."""

from __future__ import annotations

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from lem_domain.states import ActorKind

_SET_ACTOR = text("SELECT set_config('lem.actor', :actor, true), set_config('lem.actor_name', :name, true)")


async def set_actor(connection: AsyncConnection, actor: ActorKind, name: str) -> None:
    """Name the actor of every following change of state, until the transaction ends or another is named."""
    await connection.execute(_SET_ACTOR, {"actor": actor.value, "name": name})
