"""Bundles as files: written beside their place and put there whole, read back and checked before they are believed."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from lem_client.errors import FileError
from lem_domain.bundle import BundleError, Progress, Verified, verify


@contextmanager
def bundle_being_written(path: Path) -> Iterator[IO[bytes]]:
    """A file that becomes `path` when all went well, and is gone when anything did not, Ctrl-C included.

    Raises:
        FileError: there is such a file already, or none can be made there.
    """
    if path.exists():
        raise FileError((f"{path} is there already; name another file, or remove it",))
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    except OSError as error:
        raise FileError((f"no file can be made in {path.parent} ({error.strerror}); name another place",)) from error
    part = Path(name)
    try:
        with os.fdopen(handle, "w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.chmod(0o666 & ~_umask())
        part.rename(path)
    except OSError as error:
        raise FileError((f"{path} can't be written ({error.strerror}); free space, or name another place",)) from error
    finally:
        part.unlink(missing_ok=True)


def verified(file: IO[bytes], progress: Progress | None = None) -> Verified:
    """What a whole bundle says of itself; the file stands at its beginning afterwards.

    Raises:
        BundleError: it is not whole.
    """
    file.seek(0)
    found = verify(file, progress)
    file.seek(0)
    return found


@contextmanager
def bundle_to_be_sent(path: Path, progress: Progress | None = None) -> Iterator[tuple[IO[bytes], int]]:
    """A bundle that is whole, and its size in bytes.

    Raises:
        FileError: it can't be read, or is no whole bundle; says which.
    """
    try:
        with path.open("rb") as file:
            if not path.is_file():
                raise FileError((f"{path} is no file; name a bundle",))
            try:
                verified(file, progress)
            except BundleError as error:
                raise FileError((f"{path}: {error}",)) from None
            yield file, path.stat().st_size
    except FileNotFoundError:
        raise FileError((f"there is no file {path}; check the path",)) from None
    except OSError as error:
        raise FileError((f"{path} can't be read ({error.strerror}); check the path and its permissions",)) from error


def _umask() -> int:
    now = os.umask(0)
    os.umask(now)
    return now
