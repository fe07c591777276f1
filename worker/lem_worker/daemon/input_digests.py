"""Digests and seeds of an attempt's inputs (prompts, model, tokenizer), for its environment snapshot."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence

from pydantic import BaseModel
from pydantic.types import JsonValue

from lem_domain.backends.registry import backend_spec
from lem_domain.config.experiment import ExperimentConfig
from lem_domain.prompt_sets import DEFAULT_PROMPT_SET, load_builtin_prompts, prompts_digest

_TOKENIZER_FILES = frozenset(
    {
        "added_tokens.json",
        "chat_template.jinja",
        "chat_template.json",
        "merges.txt",
        "special_tokens_map.json",
        "spiece.model",
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer_config.json",
        "vocab.json",
        "vocab.txt",
    }
)


def input_facts(
    config: ExperimentConfig,
    *,
    sent: Sequence[str],
    source: Mapping[str, JsonValue],
    model_files: Mapping[str, str],
) -> dict[str, JsonValue]:
    """Digests of the prompt set and of the prompts sent, every seed, and digests of a local model's files.

    `source` describes prompts that the server does not hold. Names and paths on the worker's machine are left out.
    """
    prompts: dict[str, JsonValue] = {"sent": len(sent), "sent_sha256": prompts_digest(sent)}
    if config.prompts.synthetic is not None:
        prompts = {"sent": None, "sent_sha256": None, "reason": "each rank makes them with its own tokenizer"}
    elif not source:
        prompts["sha256"] = config.prompts.dataset or _builtin_digest(config.prompts.builtin or DEFAULT_PROMPT_SET)
    return {
        "prompts": {**prompts, **source},
        "seeds": dict(_seeds(config, "")),
        "model_files": dict(model_files),
        "tokenizer_sha256": tokenizer_digest(model_files),
        "model_files_reason": _why_no_files(config, model_files),
    }


def tokenizer_digest(model_files: Mapping[str, str]) -> str | None:
    """SHA-256 over one line `sha256  name` per tokenizer file, sorted by name; None without such a file."""
    lines = [f"{digest}  {name}\n" for name, digest in sorted(model_files.items()) if name in _TOKENIZER_FILES]
    return hashlib.sha256("".join(lines).encode()).hexdigest() if lines else None


def _builtin_digest(name: str) -> str:
    return prompts_digest([prompt.text for prompt in load_builtin_prompts(name)])


def _seeds(model: BaseModel, path: str) -> Iterator[tuple[str, int]]:
    for name in type(model).model_fields:
        value = getattr(model, name)
        if isinstance(value, BaseModel):
            yield from _seeds(value, f"{path}{name}.")
        elif name == "seed" and isinstance(value, int):
            yield f"{path}{name}", value


def _why_no_files(config: ExperimentConfig, model_files: Mapping[str, str]) -> str | None:
    if model_files:
        return None
    if backend_spec(config.backend).is_simulated:
        return "the simulated backend loads no model"
    return "a model of the hub is named by its commit: model.revision of the effective configuration"
