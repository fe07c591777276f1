"""Exports as files: written to a temporary file and renamed when complete. A bundle is verified before it is sent."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from lem_client.errors import FileError
from lem_domain.bundle import BundleError, Verified, verify


@contextmanager
def write_whole(path: Path) -> Iterator[IO[bytes]]:
    """Open a temporary file that becomes `path` on success and is removed otherwise, Ctrl-C included.

    Raises:
        FileError: `path` exists, or cannot be written.
    """
    if path.exists():
        raise FileError((f"{path} exists already; name another file, or remove it",))
    try:
        # In the same folder: a rename is atomic within one file system only.
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    except OSError as error:
        raise FileError((f"no file can be made in {path.parent} ({error.strerror}); name another folder",)) from error
    part = Path(name)
    try:
        with os.fdopen(handle, "w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes files that only their owner may read; an export gets the usual permissions.
        part.chmod(0o666 & ~_umask())
        part.rename(path)
    except OSError as error:
        raise FileError((f"{path} can't be written ({error.strerror}); free space, or name another file",)) from error
    finally:
        part.unlink(missing_ok=True)


def check_bundle(file: IO[bytes]) -> Verified:
    """Verify a bundle and rewind the file; return the bundle's header and digest.

    Raises:
        BundleError: it is incomplete or damaged.
    """
    file.seek(0)
    verified = verify(file)
    file.seek(0)
    return verified


@contextmanager
def open_bundle(path: Path) -> Iterator[tuple[IO[bytes], int]]:
    """Open a verified bundle; yields the file and its size in bytes.

    Raises:
        FileError: it can't be read, or is incomplete or damaged.
    """
    try:
        with path.open("rb") as file:
            if not path.is_file():
                raise FileError((f"{path} is not a regular file; name a bundle",))
            try:
                check_bundle(file)
            except BundleError as error:
                raise FileError((f"{path}: {error}",)) from None
            yield file, path.stat().st_size
    except FileNotFoundError:
        raise FileError((f"there is no file {path}; check the path",)) from None
    except OSError as error:
        raise FileError((f"{path} can't be read ({error.strerror}); check the path and its permissions",)) from error


def _umask() -> int:
    # The only way to read it is to set it.
    now = os.umask(0)
    os.umask(now)
    return now
