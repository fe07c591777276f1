"""All tables in one place, for the test that compares them with the migrations."""

from __future__ import annotations

from lem_server.access import tables as access_tables
from lem_server.aggregation import tables as aggregation_tables
from lem_server.campaigns import tables as campaign_tables
from lem_server.database.metadata import metadata
from lem_server.datasets import tables as dataset_tables
from lem_server.evidence import tables as evidence_tables
from lem_server.leases import tables as lease_tables
from lem_server.runs import tables as run_tables
from lem_server.workers import tables as worker_tables

__all__ = [
    "access_tables",
    "aggregation_tables",
    "campaign_tables",
    "dataset_tables",
    "evidence_tables",
    "lease_tables",
    "metadata",
    "run_tables",
    "worker_tables",
]
