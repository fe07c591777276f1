"""What must be known before any process starts: the model's place, the prompts, the jobs."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from pydantic.types import JsonValue

from lem_domain.arrivals import TraceError, parse_trace
from lem_domain.backends.registry import backend_spec
from lem_domain.config.experiment import ExperimentConfig, PromptsConfig
from lem_domain.config.prompt_sources import HuggingFacePrompts
from lem_domain.errors import LemError
from lem_domain.prompt_sets import DEFAULT_PROMPT_SET, PromptFileError, load_builtin_prompts, prompts_digest
from lem_domain.states import FailureReason
from lem_worker.daemon import hub_prompts
from lem_worker.daemon.ending import broken, failed
from lem_worker.daemon.prompt_selection import select_prompts
from lem_worker.models import ModelSource, find
from lem_worker.process.children import ATTEMPT_VARIABLE, ProcessExit
from lem_worker.server_api import ServerApi


class Prepared(NamedTuple):
    """The model, what goes with it, and the prompts of an attempt."""

    model: ModelSource
    prompts: tuple[str, ...]
    arrivals_s: tuple[float, ...] = ()
    prompt_facts: Mapping[str, JsonValue] = {}
    """For the environment: where prompts that the server does not hold came from, and their digest."""
    adapter: ModelSource | None = None
    assistant: ModelSource | None = None

    @property
    def is_local(self) -> bool:
        """Whether nothing has to be looked up on the hub."""
        return all(one is None or one.is_local for one in (self.model, self.adapter, self.assistant))

    @property
    def files(self) -> dict[str, JsonValue]:
        """SHA-256 by file name of what lies in local folders, for the environment."""
        named = {"model_files": self.model, "adapter_files": self.adapter, "assistant_files": self.assistant}
        return {name: {**source.file_digests} for name, source in named.items() if source is not None}


async def prepare(config: ExperimentConfig, api: ServerApi, *, attempt_id: str, cache_dir: Path) -> Prepared:
    """Find the model and the prompts; a built-in model may be made here, once.

    Raises:
        AttemptEnded: one of them is not there.
    """
    prompts, facts = await _prompts(config.prompts, api, attempt_id=attempt_id)
    arrivals_s = await _arrivals(config.traffic.trace, api)
    spec = backend_spec(config.backend)
    if spec.is_simulated:
        return Prepared(ModelSource(config.model.id, config.model.id, is_local=True), prompts, arrivals_s, facts)

    async def found(name: str, *more: str) -> ModelSource:
        return await _find(name, *more, attempt_id=attempt_id, cache_dir=cache_dir)

    model, adapter = config.model, config.model.adapter
    assistant = spec.assistant_model(config.section(spec.section))
    return Prepared(
        await found(model.id, *([model.revision] if model.revision else [])),
        prompts,
        arrivals_s,
        facts,
        await found(adapter, find.ADAPTER) if adapter else None,
        await found(assistant) if assistant else None,
    )


async def _find(name: str, *more: str, attempt_id: str, cache_dir: Path) -> ModelSource:
    answer = await _ask("lem_worker.models.find", [name, str(cache_dir), *more], attempt_id)
    if answer.code == 0:
        return ModelSource(**json.loads(answer.said))
    if answer.code == find.NOT_FOUND:
        raise failed(FailureReason.BACKEND_INITIALISATION, answer.last_line)
    if answer.code == find.NO_PLACE:
        raise broken(FailureReason.BACKEND_UNAVAILABLE, answer.last_line)
    raise broken(
        FailureReason.BACKEND_INITIALISATION,
        f"looking for the model {name} {ProcessExit(answer.code)}; its last line: {answer.last_line}",
    )


class _Answer(NamedTuple):
    """What a helping process said before it ended with a code."""

    code: int
    said: bytes
    last_line: str


async def _ask(module: str, arguments: Sequence[str], attempt_id: str) -> _Answer:
    """Ask a process that bears the attempt's name and is gone when this ends, however it ends."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", module, *arguments),
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
    lines = complained.decode(errors="replace").strip().splitlines() or ["it said nothing"]
    return _Answer(process.returncode or 0, said, lines[-1])


async def _prompts(
    wanted: PromptsConfig, api: ServerApi, *, attempt_id: str
) -> tuple[tuple[str, ...], Mapping[str, JsonValue]]:
    if wanted.synthetic is not None:  # the ranks make them, with their own tokenizer
        return (), {}
    if wanted.huggingface is not None:
        most = wanted.sample_size if wanted.order == "as_is" else None
        texts = await _of_hub(wanted.huggingface, most, attempt_id)
        facts: dict[str, JsonValue] = {"dataset": wanted.huggingface.dataset, "sha256": prompts_digest(texts)}
        return select_prompts(texts, wanted), facts
    try:
        if wanted.dataset is not None:
            texts = (await api.dataset(wanted.dataset)).texts
        else:
            texts = tuple(prompt.text for prompt in load_builtin_prompts(wanted.builtin or DEFAULT_PROMPT_SET))
    except (PromptFileError, LemError) as error:
        raise failed(FailureReason.BACKEND_INITIALISATION, f"the prompts can't be had: {error}") from error
    return select_prompts(texts, wanted), {}


async def _of_hub(source: HuggingFacePrompts, most: int | None, attempt_id: str) -> tuple[str, ...]:
    """Read by a process of its own: the library takes seconds to import, and a download can't be stopped otherwise."""
    answer = await _ask("lem_worker.daemon.hub_prompts", [source.model_dump_json(), str(most or "")], attempt_id)
    if answer.code == 0:
        return tuple(json.loads(answer.said))
    if answer.code == hub_prompts.NO_LIBRARY:
        raise broken(FailureReason.BACKEND_UNAVAILABLE, answer.last_line)
    raise failed(FailureReason.BACKEND_INITIALISATION, f"the prompts can't be had: {answer.last_line}")


async def _arrivals(trace: str | None, api: ServerApi) -> tuple[float, ...]:
    if trace is None:
        return ()
    try:
        return parse_trace((await api.dataset(trace)).texts)
    except (TraceError, LemError) as error:
        raise failed(FailureReason.BACKEND_INITIALISATION, f"the trace of arrivals can't be had: {error}") from error
