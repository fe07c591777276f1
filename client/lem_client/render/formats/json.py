"""Results as the JSON document of `GET /api/v1/campaigns/{id}/results`."""

from __future__ import annotations

from lem_domain.wire.campaigns import CampaignResults


def render(results: CampaignResults) -> str:
    """Return one line of JSON."""
    return results.model_dump_json() + "\n"
