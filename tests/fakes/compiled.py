"""Builds a small C library with the system's compiler."""

from __future__ import annotations

import hashlib
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

_FLAGS = ("-std=c11", "-D_GNU_SOURCE", "-O1", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared", "-pthread")


def compiled(name: str, sources: Path, folder: Path, libraries: Sequence[str]) -> Path:
    """Compile all C sources of a folder into a library of that file name; return its path below `folder`.

    The path contains a digest of sources and flags, so a change compiles a new one. Concurrent tests may compile the
    same library: the rename at the end is atomic.
    """
    flags = (*_FLAGS, *libraries)
    digest = hashlib.sha256(" ".join(flags).encode())
    for source in sorted(sources.glob("*.[ch]")):
        digest.update(source.read_bytes())
    target = folder / f"{sources.name}-{digest.hexdigest()[:16]}"
    library = target / name
    if not library.exists():
        target.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target) as scratch:
            made = Path(scratch) / name
            command = ["cc", *_FLAGS, "-o", str(made), *map(str, sorted(sources.glob("*.c"))), *libraries]
            ran = subprocess.run(command, capture_output=True, text=True, check=False)
            if ran.returncode != 0:
                raise AssertionError(f"{sources.name} does not compile:\n{ran.stderr}")
            made.replace(library)
    return library
