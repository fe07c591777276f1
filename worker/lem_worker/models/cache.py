"""Folders that are made once, by whoever comes first, and are either whole or not there."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

_COMPLETE = ".complete"


def default_cache_dir() -> Path:
    """`$LEM_CACHE_DIR`, or `~/.cache/lem`."""
    configured = os.environ.get("LEM_CACHE_DIR")
    return Path(configured) if configured else Path.home() / ".cache" / "lem"


def build_once(target: Path, *, recipe: str, build: Callable[[Path], None]) -> Path:
    """`target`, built by `build(folder)` unless it is there from the same recipe.

    Others that come meanwhile wait and get the first one's work. A build that is killed leaves a folder beside the
    target that the next build removes. Every build has a folder of its own: the lock ends with its holder, and a
    process that the holder started to do the work may outlive it and go on writing.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    if _is_complete(target, recipe):
        return target
    with (target.parent / f".{target.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if _is_complete(target, recipe):
            return target
        for abandoned in target.parent.glob(f".{target.name}.building*"):
            shutil.rmtree(abandoned, ignore_errors=True)
        fresh = target.parent / f".{target.name}.building-{uuid4().hex}"
        fresh.mkdir()
        build(fresh)
        (fresh / _COMPLETE).write_text(recipe)
        for path in [*fresh.rglob("*"), fresh]:
            _sync(path)
        shutil.rmtree(target, ignore_errors=True)
        fresh.rename(target)
        _sync(target.parent)
    return target


def _is_complete(target: Path, recipe: str) -> bool:
    marker = target / _COMPLETE
    return marker.is_file() and marker.read_text() == recipe


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
