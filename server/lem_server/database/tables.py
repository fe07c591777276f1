"""All tables in one place, for the test that compares them with the migrations."""

from __future__ import annotations

from lem_server.access import models as access_tables
from lem_server.aggregation import models as aggregation_tables
from lem_server.attempts import models as attempt_tables
from lem_server.campaigns import models as campaign_tables
from lem_server.database.metadata import metadata
from lem_server.datasets import models as dataset_tables
from lem_server.evidence import models as evidence_tables
from lem_server.leases import models as lease_tables
from lem_server.runs import models as run_tables
from lem_server.workers import models as worker_tables

__all__ = [
    "access_tables",
    "aggregation_tables",
    "attempt_tables",
    "campaign_tables",
    "dataset_tables",
    "evidence_tables",
    "lease_tables",
    "metadata",
    "run_tables",
    "worker_tables",
]
