"""The application's state, as one typed object for every request handler."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from fastapi import Depends, Request
from sqlalchemy.ext.asyncio import AsyncEngine

from lem_server.database.listener import Hub
from lem_server.settings import Settings

if TYPE_CHECKING:
    # The capability imports this module, so it cannot be imported here at run time.
    from lem_server.aggregation.campaigns import CampaignAggregations


@dataclass(frozen=True, kw_only=True)
class AppContext:
    """The application's state between its start and its shutdown."""

    settings: Settings
    engine: AsyncEngine
    hub: Hub
    aggregations: CampaignAggregations


def _context(request: Request) -> AppContext:
    found: AppContext = request.app.state.context
    return found


Context = Annotated[AppContext, Depends(_context)]
