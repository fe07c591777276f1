"""What must be known before any process starts: the model's place, the prompts, the jobs."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import NamedTuple

from lem_domain.config.experiment import BackendName, ExperimentConfig
from lem_domain.errors import LemError
from lem_domain.prompt_sets import DEFAULT_PROMPT_SET, PromptFileError, load_builtin_prompts
from lem_domain.states import FailureReason
from lem_worker.ending import failed
from lem_worker.models import ModelNotFound, resolve_model
from lem_worker.prompt_selection import select_prompts
from lem_worker.server_api import ServerApi


class Prepared(NamedTuple):
    """The model and the prompts of an attempt."""

    model_path: str
    model_is_local: bool
    model_files: dict[str, str]
    prompts: tuple[str, ...]


async def prepare(config: ExperimentConfig, api: ServerApi, cache_dir: Path) -> Prepared:
    """Find the model and the prompts; a built-in model may be converted here, once.

    Raises:
        AttemptEnded: one of them is not there.
    """
    prompts = await _prompts(config, api)
    if config.backend is BackendName.SIMULATED:
        return Prepared(config.model.id, True, {}, prompts)
    try:
        model = await asyncio.to_thread(
            resolve_model, config.model.id, cache_dir=cache_dir, revision=config.model.revision
        )
    except ModelNotFound as error:
        raise failed(FailureReason.BACKEND_INITIALISATION, str(error)) from error
    return Prepared(model.path_or_id, model.is_local, model.file_digests, prompts)


async def _prompts(config: ExperimentConfig, api: ServerApi) -> tuple[str, ...]:
    wanted = config.prompts
    try:
        if wanted.dataset is not None:
            texts = (await api.dataset(wanted.dataset)).texts
        else:
            texts = tuple(prompt.text for prompt in load_builtin_prompts(wanted.builtin or DEFAULT_PROMPT_SET))
    except (PromptFileError, LemError) as error:
        raise failed(FailureReason.BACKEND_INITIALISATION, f"the prompts can't be had: {error}") from error
    return select_prompts(texts, wanted)
