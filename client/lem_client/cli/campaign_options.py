"""What every command that reads a campaign file shares: its arguments, and the upload of its prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lem_client.cli.session import Session
from lem_client.files.campaign_file import CampaignFile

CampaignPath = Annotated[Path, typer.Argument(metavar="FILE", help="A campaign file, YAML or JSON.")]
CampaignName = Annotated[str | None, typer.Option("--name", help="Name of the campaign instead of the file's.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="PATH=VALUE", help="Set a value, instead of the file's; repeatable."),
]


def upload_prompts(session: Session, loaded: CampaignFile) -> None:
    """Upload the prompt sets that the file names: the campaign refers to them by digest."""
    for prompts in loaded.prompt_sets:
        session.client.upload_dataset(prompts.name, prompts.prompts)
