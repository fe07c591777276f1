"""Sets of prompts, built in or uploaded, addressed by digest."""

from __future__ import annotations

from pydantic import Field

from lem_domain.ids import Sha256
from lem_domain.wire.base import AnswerModel, RequestModel

MAX_DATASET_BYTES = 4 * 2**20


class DatasetUpload(RequestModel):
    """Prompts; their address is their digest by `lem_domain.prompt_sets.prompts_digest`."""

    name: str = Field(min_length=1, max_length=200)
    prompts: tuple[str, ...] = Field(min_length=1, max_length=100_000)


class DatasetView(AnswerModel):
    """A set of prompts without its texts."""

    name: str
    sha256: Sha256
    builtin: bool
    prompts: int


class DatasetContent(DatasetView):
    """A set of prompts with its texts."""

    texts: tuple[str, ...]
