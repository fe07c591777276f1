"""Imports every capability's tables, so that `metadata` is the whole schema: the migration creates it from here."""

from __future__ import annotations

import lem_server.access.models
import lem_server.aggregation.models
import lem_server.attempts.models
import lem_server.campaigns.models
import lem_server.datasets.models
import lem_server.evidence.models
import lem_server.leases.models
import lem_server.runs.models
import lem_server.workers.models  # noqa: F401 - imported to register the tables
from lem_server.database.metadata import metadata

__all__ = ["metadata"]
