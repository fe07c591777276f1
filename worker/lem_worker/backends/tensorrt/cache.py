"""The cache of built engines: one folder per engine, named by a key of everything that shapes it.

TensorRT compiles a model for one kind of GPU, one version of itself and one set of sizes. A key without one of these
would silently measure another engine than the requested one.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from pydantic.types import JsonValue

from lem_domain.config.hashing import canonical_json
from lem_domain.errors import LemError
from lem_worker.models.cache import build_once

INGREDIENTS = "lem-engine-key.json"
_COMMIT = re.compile(r"[0-9a-f]{40}")
_OF_THE_ENGINE = ("TRTLLM_", "TLLM_")
"""Prefixes of the environment variables that TensorRT-LLM reads."""


class EngineNotCacheable(LemError):
    """The model has no identity that a cache key could name."""


class GpuKind(NamedTuple):
    """The kind of GPU that an engine is compiled for."""

    name: str
    compute_capability: tuple[int, int] | None


class EngineKey(NamedTuple):
    """The name of an engine's folder, and the ingredients of its digest."""

    digest: str
    ingredients: dict[str, JsonValue]


def key_of(
    *,
    model: str,
    revision: str | None,
    model_files: Mapping[str, str],
    arguments: Mapping[str, JsonValue],
    versions: Mapping[str, str | None],
    gpus: tuple[GpuKind, ...],
    environment: Mapping[str, str] = os.environ,
) -> EngineKey:
    """SHA-256 (64 hex digits) over the canonical JSON of everything that shapes an engine.

    `model_files` are the SHA-256 of a local model's files; a model of the hub is identified by its commit instead.

    Raises:
        EngineNotCacheable: the model has neither.
    """
    identity: dict[str, JsonValue]
    if model_files:
        # The model's folder and name do not shape the engine.
        identity = {"files": dict(sorted(model_files.items()))}
    elif revision is not None and _COMMIT.fullmatch(revision):
        identity = {"id": model, "commit": revision}
    else:
        raise EngineNotCacheable(
            f"an engine of {model} can't be cached, because its weights may change; set model.revision to a commit "
            "(40 hex digits) or use a local folder, or remove tensorrt.engine_cache_dir."
        )
    ingredients: dict[str, JsonValue] = {
        "model": identity,
        "arguments": dict(arguments),
        "versions": dict(versions),
        "gpus": [{"name": gpu.name, "compute_capability": list(gpu.compute_capability or ())} for gpu in gpus],
        "environment": {name: environment[name] for name in sorted(environment) if name.startswith(_OF_THE_ENGINE)},
    }
    return EngineKey(hashlib.sha256(canonical_json(ingredients)).hexdigest(), ingredients)


def engine_folder(cache: Path, key: EngineKey, *, build: Callable[[Path], None], force: bool) -> Path:
    """The folder of the key's engine, built by `build(folder)` unless it exists; `force` rebuilds it."""
    target = cache.expanduser() / key.digest
    if force:
        shutil.rmtree(target, ignore_errors=True)

    def build_and_describe(folder: Path) -> None:
        build(folder)
        (folder / INGREDIENTS).write_text(json.dumps(key.ingredients, indent=2))

    return build_once(target, recipe=key.digest, build=build_and_describe)
