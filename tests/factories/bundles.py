"""Bundles taken apart and put together by the standard library, whatever the project's own code thinks of them."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

SUMS = "SHA256SUMS"


class File(NamedTuple):
    """One member."""

    name: str
    content: bytes


def unpack(archive: bytes) -> list[File]:
    """The members in order, the list of digests too."""
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:") as tar:
        return [File(one.name, _content(tar, one)) for one in tar.getmembers()]


def pack(files: Iterable[File], *, sums: bytes | None = None) -> bytes:
    """An archive of these members with digests that are right, or with the given ones."""
    files = [one for one in files if one.name != SUMS]
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w:", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in [*files, File(SUMS, digests(files) if sums is None else sums)]:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return written.getvalue()


def digests(files: Iterable[File]) -> bytes:
    """As `sha256sum` writes them."""
    return b"".join(f"{hashlib.sha256(one.content).hexdigest()}  {one.name}\n".encode() for one in files)


def with_row(archive: bytes, name: str, change: Callable[[dict[str, Any]], None], *, line: int = 0) -> bytes:
    """The archive with one row changed in the first member whose name begins so, and digests that are right again."""
    files = unpack(archive)
    place = next(index for index, one in enumerate(files) if one.name.startswith(name))
    lines = files[place].content.splitlines()
    row = json.loads(lines[line])
    change(row)
    lines[line] = json.dumps(row).encode()
    files[place] = File(files[place].name, b"\n".join(lines) + b"\n")
    return pack(files)


def without(archive: bytes, part: str, *, last: bool = False) -> bytes:
    """The archive without the first or last member in whose name this is, and digests that are right again."""
    files = unpack(archive)
    place = [index for index, one in enumerate(files) if part in one.name][-1 if last else 0]
    return pack(files[:place] + files[place + 1 :])


def _content(tar: tarfile.TarFile, entry: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(entry)
    assert file is not None
    return file.read()
