"""What a user may configure, and how it becomes experiments and runs."""

from lem_domain.config.campaign import CampaignSpec, ExecutionConfig, campaign_from_document
from lem_domain.config.expansion import Plan, PlannedExperiment, expand
from lem_domain.config.experiment import BackendName, ExperimentConfig
from lem_domain.config.hashing import canonical_json, config_hash
from lem_domain.config.ordering import PlannedRun

__all__ = [
    "BackendName",
    "CampaignSpec",
    "ExecutionConfig",
    "ExperimentConfig",
    "Plan",
    "PlannedExperiment",
    "PlannedRun",
    "campaign_from_document",
    "canonical_json",
    "config_hash",
    "expand",
]
