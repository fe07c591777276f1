"""The model and the prompts of an attempt, found before any rank starts."""

from __future__ import annotations

import asyncio
import json
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
from lem_worker.daemon import huggingface_prompts
from lem_worker.daemon.attempt_end import machine_failure, run_failure
from lem_worker.models import ModelSource, find
from lem_worker.process.children import ProcessExit, child_environment
from lem_worker.process.prompt_selection import select_prompts
from lem_worker.server_api import ServerApi


class Prepared(NamedTuple):
    """The models and the prompts of an attempt."""

    model: ModelSource
    prompts: tuple[str, ...]
    arrivals_s: tuple[float, ...] = ()
    prompt_facts: Mapping[str, JsonValue] = {}
    """For the environment snapshot: source and digest of prompts that the server does not hold."""
    adapter: ModelSource | None = None
    assistant: ModelSource | None = None

    @property
    def is_local(self) -> bool:
        """Whether every model is on this machine's disk."""
        return all(one is None or one.is_local for one in (self.model, self.adapter, self.assistant))

    @property
    def files(self) -> dict[str, JsonValue]:
        """For the environment snapshot: SHA-256 by file name of each local folder."""
        named = {"model_files": self.model, "adapter_files": self.adapter, "assistant_files": self.assistant}
        return {name: {**source.file_digests} for name, source in named.items() if source is not None}


async def prepare(config: ExperimentConfig, api: ServerApi, *, attempt_id: str, cache_dir: Path) -> Prepared:
    """Find the model and the prompts; the first use of a built-in model builds it.

    Raises:
        AttemptEnded: one of them is missing.
    """
    prompts, facts = await _prompts(config.prompts, api, attempt_id=attempt_id)
    arrivals_s = await _arrivals(config.traffic.trace, api)
    spec = backend_spec(config.backend)
    if spec.is_simulated:
        return Prepared(ModelSource(config.model.id, config.model.id, is_local=True), prompts, arrivals_s, facts)

    async def found(name: str, *options: str) -> ModelSource:
        return await _find_model(name, *options, attempt_id=attempt_id, cache_dir=cache_dir)

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


async def _find_model(name: str, *options: str, attempt_id: str, cache_dir: Path) -> ModelSource:
    output = await _run_helper("lem_worker.models.find", [name, str(cache_dir), *options], attempt_id)
    if output.code == 0:
        return ModelSource(**json.loads(output.stdout))
    if output.code == find.NOT_FOUND:
        raise run_failure(FailureReason.BACKEND_INITIALISATION, output.last_line)
    if output.code == find.CACHE_UNUSABLE:
        raise machine_failure(FailureReason.BACKEND_UNAVAILABLE, output.last_line)
    raise machine_failure(
        FailureReason.BACKEND_INITIALISATION,
        f"the search for the model {name} {ProcessExit(output.code)}; its last line: {output.last_line}",
    )


class _HelperOutput(NamedTuple):
    """Exit code and output of a helper subprocess."""

    code: int
    stdout: bytes
    last_line: str


async def _run_helper(module: str, arguments: Sequence[str], attempt_id: str) -> _HelperOutput:
    """Run a module in a subprocess of the attempt; a cancellation kills it."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", module, *arguments),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        # A Ctrl-C in the terminal must reach the daemon alone, which then ends the attempt.
        start_new_session=True,
        env=child_environment(attempt_id),
    )
    try:
        stdout, stderr = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    lines = stderr.decode(errors="replace").strip().splitlines() or ["it printed nothing"]
    return _HelperOutput(process.returncode or 0, stdout, lines[-1])


async def _prompts(
    wanted: PromptsConfig, api: ServerApi, *, attempt_id: str
) -> tuple[tuple[str, ...], Mapping[str, JsonValue]]:
    if wanted.synthetic is not None:
        return (), {}  # each rank makes them with its own tokenizer
    if wanted.huggingface is not None:
        limit = wanted.sample_size if wanted.order == "as_is" else None
        texts = await _huggingface_prompts(wanted.huggingface, limit, attempt_id)
        facts: dict[str, JsonValue] = {"dataset": wanted.huggingface.dataset, "sha256": prompts_digest(texts)}
        return select_prompts(texts, wanted, len), facts
    try:
        if wanted.dataset is not None:
            texts = (await api.dataset(wanted.dataset)).texts
        else:
            texts = tuple(prompt.text for prompt in load_builtin_prompts(wanted.builtin or DEFAULT_PROMPT_SET))
    except (PromptFileError, LemError) as error:
        raise _prompts_missing(str(error)) from error
    return select_prompts(texts, wanted, len), {}


async def _huggingface_prompts(source: HuggingFacePrompts, limit: int | None, attempt_id: str) -> tuple[str, ...]:
    arguments = [source.model_dump_json(), str(limit or "")]
    output = await _run_helper("lem_worker.daemon.huggingface_prompts", arguments, attempt_id)
    if output.code == 0:
        return tuple(json.loads(output.stdout))
    if output.code == huggingface_prompts.LIBRARY_MISSING:
        raise machine_failure(FailureReason.BACKEND_UNAVAILABLE, output.last_line)
    raise _prompts_missing(output.last_line)


def _prompts_missing(why: str) -> LemError:
    return run_failure(FailureReason.BACKEND_INITIALISATION, f"the prompts can't be read: {why}")


async def _arrivals(trace: str | None, api: ServerApi) -> tuple[float, ...]:
    if trace is None:
        return ()
    try:
        return parse_trace((await api.dataset(trace)).texts)
    except (TraceError, LemError) as error:
        raise run_failure(
            FailureReason.BACKEND_INITIALISATION, f"the trace of arrivals can't be read: {error}"
        ) from error
