"""The thin client of LEM: a Python library and the command `lemctl`."""

from lem_client.async_client import AsyncClient
from lem_client.client import Client
from lem_client.files.campaign_file import CampaignFile, load_campaign_file

__all__ = ["AsyncClient", "CampaignFile", "Client", "load_campaign_file"]
