"""What must be known before any process starts: the model's place, the prompts, the jobs."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import NamedTuple

from lem_domain.config.experiment import BackendName, ExperimentConfig, ModelConfig
from lem_domain.errors import LemError
from lem_domain.prompt_sets import DEFAULT_PROMPT_SET, PromptFileError, load_builtin_prompts
from lem_domain.states import FailureReason
from lem_worker.ending import broken, failed
from lem_worker.models import ModelSource, find
from lem_worker.processes import ATTEMPT_VARIABLE, Exit
from lem_worker.prompt_selection import select_prompts
from lem_worker.server_api import ServerApi


class Prepared(NamedTuple):
    """The model and the prompts of an attempt."""

    model_path: str
    model_is_local: bool
    model_files: dict[str, str]
    prompts: tuple[str, ...]


async def prepare(config: ExperimentConfig, api: ServerApi, *, attempt_id: str, cache_dir: Path) -> Prepared:
    """Find the model and the prompts; a built-in model may be made here, once.

    Raises:
        AttemptEnded: one of them is not there.
    """
    prompts = await _prompts(config, api)
    if config.backend is BackendName.SIMULATED:
        return Prepared(config.model.id, True, {}, prompts)
    model = await _model(config.model, attempt_id=attempt_id, cache_dir=cache_dir)
    return Prepared(model.path_or_id, model.is_local, model.file_digests, prompts)


async def _model(wanted: ModelConfig, *, attempt_id: str, cache_dir: Path) -> ModelSource:
    """Found by a process that bears the attempt's name and is gone when this ends, however it ends."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "lem_worker.models.find", wanted.id, str(cache_dir)),
        *([wanted.revision] if wanted.revision else []),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
        env={**os.environ, ATTEMPT_VARIABLE: attempt_id, "LEM_PARENT": str(os.getpid())},
    )
    try:
        said, complained = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode == 0:
        return ModelSource(**json.loads(said))
    lines = complained.decode(errors="replace").strip().splitlines() or ["it said nothing"]
    if process.returncode == find.NOT_FOUND:
        raise failed(FailureReason.BACKEND_INITIALISATION, lines[-1])
    if process.returncode == find.NO_PLACE:
        raise broken(FailureReason.BACKEND_UNAVAILABLE, lines[-1])
    raise broken(
        FailureReason.BACKEND_INITIALISATION,
        f"looking for the model {wanted.id} {Exit(process.returncode or 0)}; its last line: {lines[-1]}",
    )


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
