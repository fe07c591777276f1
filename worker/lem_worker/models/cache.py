"""Folders that are built once for all processes, and are either complete or absent."""

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
    """Return `target`, built by `build(folder)` unless it exists from the same recipe.

    Concurrent callers wait for the first one's build. A killed build leaves a folder next to the target, which the next
    build removes.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    if _is_complete(target, recipe):
        return target
    with (target.parent / f".{target.name}.lock").open("w") as lock:
        # Without a timeout: a build takes minutes, and the kernel frees the lock when its holder dies. The daemon kills
        # its caller (find.py) at limits.load_s.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if _is_complete(target, recipe):
            return target
        for abandoned in target.parent.glob(f".{target.name}.building*"):
            shutil.rmtree(abandoned, ignore_errors=True)
        # A new folder for each build: the lock ends with the process that holds it, but a subprocess that does the work
        # may outlive it and continue to write.
        fresh = target.parent / f".{target.name}.building-{uuid4().hex}"
        fresh.mkdir()
        build(fresh)
        (fresh / _COMPLETE).write_text(recipe)
        for path in [*fresh.rglob("*"), fresh]:
            _sync(path)
        # Synced before the rename, so that after a power loss the target is complete or absent.
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
