"""Names the actor of transitions; a trigger refuses every change of a run's state without one."""

from __future__ import annotations

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from lem_domain.states import ActorKind

# set_config(…, true) lasts until the end of the transaction.
_SET_ACTOR = text("SELECT set_config('lem.actor', :actor, true), set_config('lem.actor_name', :name, true)")


async def set_actor(connection: AsyncConnection, actor: ActorKind, name: str) -> None:
    """Set the actor of all following transitions, until the transaction ends or another actor is set."""
    await connection.execute(_SET_ACTOR, {"actor": actor.value, "name": name})
