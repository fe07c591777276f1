"""Resolves the name of a model in a configuration to a source that an engine can load."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from lem_domain.errors import LemError
from lem_worker.models.cache import build_once

BUILTIN_PREFIX = "builtin:"
RECIPES = {"tiny-llama": "tiny-llama 2", "smollm2-135m-instruct": "smollm2-135m-instruct 1"}
"""Built-in models and the version of each recipe; a cached model of another version is rebuilt."""
_DIGESTED = (".json", ".safetensors", ".bin", ".model", ".gguf", ".jinja", ".txt")


class ModelNotFound(LemError):
    """The model is not available; the message names the remedy."""


@dataclass(frozen=True)
class ModelSource:
    """A model that an engine can load; `file_digests` are SHA-256 by file name, for local folders only."""

    requested: str
    path_or_id: str
    is_local: bool
    revision: str | None = None
    file_digests: dict[str, str] = field(default_factory=dict)


def resolve_model(model_id: str, *, cache_dir: Path, revision: str | None = None) -> ModelSource:
    """Find a model, and build a built-in one that is not in the cache.

    A hub id can't be checked without the hub: it is returned unchanged, and the engine's load decides.

    Raises:
        ModelNotFound: an unknown built-in name, a missing folder, a folder without a model, or a missing package.
    """
    if model_id.startswith(BUILTIN_PREFIX):
        name = model_id.removeprefix(BUILTIN_PREFIX)
        if name not in RECIPES:
            known = ", ".join(BUILTIN_PREFIX + one for one in sorted(RECIPES))
            raise ModelNotFound(f"there is no built-in model {model_id!r}; use one of {known}.")
        made = build_once(cache_dir / "models" / name, recipe=RECIPES[name], build=lambda fresh: _build(name, fresh))
        return _local(model_id, made, cache_dir)
    folder = _folder(model_id, "model.id")
    if folder is None:
        return ModelSource(requested=model_id, path_or_id=model_id, is_local=False, revision=revision)
    if not (folder / "config.json").is_file():
        raise ModelNotFound(f"the folder {model_id} holds no config.json; name the folder of a model.")
    return _local(model_id, folder.resolve(), cache_dir)


def resolve_adapter(adapter_id: str, *, cache_dir: Path) -> ModelSource:
    """Find an adapter; a hub id is returned unchanged.

    Raises:
        ModelNotFound: a missing folder, or a folder without an adapter.
    """
    folder = _folder(adapter_id, "model.adapter")
    if folder is None:
        return ModelSource(requested=adapter_id, path_or_id=adapter_id, is_local=False)
    if not (folder / "adapter_config.json").is_file():
        raise ModelNotFound(f"the folder {adapter_id} holds no adapter_config.json; name the folder of an adapter.")
    return _local(adapter_id, folder.resolve(), cache_dir)


def _folder(name: str, key: str) -> Path | None:
    """The folder that `name` names, or None where `name` is no path.

    Raises:
        ModelNotFound: `name` is a path and the folder does not exist.
    """
    try:
        folder = Path(name).expanduser()
    except RuntimeError:
        raise ModelNotFound(
            f"{name} is in the home of a user who does not exist on the worker's machine; correct {key}."
        ) from None
    if folder.is_dir():
        return folder
    if name.startswith(("/", "./", "../", "~")):
        raise ModelNotFound(f"there is no folder {name} on the worker's machine; correct {key}.")
    return None


def _build(name: str, folder: Path) -> None:
    """Build a built-in model in a subprocess that ends with this one; this process must not import an engine."""
    made = subprocess.run(
        [sys.executable, "-m", "lem_worker.models.build", name, str(folder)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "LEM_PARENT": str(os.getpid())},
    )
    if made.returncode != 0:
        lines = made.stderr.strip().splitlines() or [f"building it ended with exit code {made.returncode}"]
        raise ModelNotFound(lines[-1])


def _local(requested: str, folder: Path, cache_dir: Path) -> ModelSource:
    return ModelSource(
        requested=requested, path_or_id=str(folder), is_local=True, file_digests=_digests(folder, cache_dir)
    )


def _digests(folder: Path, cache_dir: Path) -> dict[str, str]:
    """SHA-256 of the model's files, cached by size and modification time, because weights are large."""
    known_file = cache_dir / "digests" / f"{hashlib.sha256(str(folder).encode()).hexdigest()[:32]}.json"
    try:
        known: dict[str, list[object]] = json.loads(known_file.read_text())
    except (OSError, ValueError):
        known = {}
    found: dict[str, list[object]] = {}
    for path in sorted(folder.iterdir()):
        if not path.is_file() or path.suffix not in _DIGESTED:
            continue
        status = path.stat()
        mark: list[object] = [status.st_size, status.st_mtime_ns]
        before = known.get(path.name, [])
        found[path.name] = [*mark, before[2] if before[:2] == mark else _sha256(path)]
    if found != known:
        known_file.parent.mkdir(parents=True, exist_ok=True)
        known_file.write_text(json.dumps(found))
    return {name: str(entry[2]) for name, entry in found.items()}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
