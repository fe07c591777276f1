"""The worker's fsynced spool: evidence lies here before it is sent, and until its attempt is over.

    <spool>/<attempt id>/
        assignment.json                                      what was claimed, and under which boot
        chunks/<process>/<stream>/<seq>.<rows>.<sha256>.chunk  sealed, not acknowledged
        chunks/<process>/<stream>/<seq>.<rows>.<sha256>.sent   acknowledged; kept in case the server asks for it again
        <process>.done.json                                  the process wrote all that it was going to write
        <process>.job.json, <process>.log                    what it was told, and its output

A file appears under its name only when its bytes are on the disk (write, fsync, rename, fsync of the folder), so that a
power cut or a SIGKILL leaves whole files and nothing else that counts: what was being written begins with a dot.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel

from lem_domain.errors import LemError
from lem_domain.evidence.codec import ChunkError, encode_chunk
from lem_domain.evidence.streams import STREAMS, StreamManifest, StreamName, digest_of_digests
from lem_domain.wire.workers import ProcessCompletion

CHUNK_SIZE = 256 * 2**10
"""Estimated bytes before compression at which a chunk is sealed: worth a request of its own, and even as text of four
bytes a character far below what a server decodes."""

_SEALED, _SENT = ".chunk", ".sent"
DISK_IS_FULL = (errno.ENOSPC, errno.EDQUOT)

_WIDTHS = {"int64": 8, "int32": 4, "float64": 8, "string": 4}
"""Bytes of a value in an Arrow buffer; of a string, its offset, and its characters are added."""


class SpoolError(LemError):
    """The spool can't be written."""


class SpooledChunk(NamedTuple):
    """A sealed chunk, known from its file's name."""

    process: str
    stream: StreamName
    seq: int
    rows: int
    sha256: str
    path: Path
    bytes: int
    acknowledged: bool


class StreamWriter:
    """Rows of one stream of one process, sealed into chunks."""

    def __init__(self, attempt_dir: Path, process: str, stream: StreamName, *, lose_first: bool = False) -> None:
        self._lose_first = lose_first
        self._folder = attempt_dir / "chunks" / process / stream.value
        self._process = process
        self._stream = stream
        self._columns: dict[str, list[object]] = {column.name: [] for column in STREAMS[stream]}
        self._width = sum(_WIDTHS[column.type] for column in STREAMS[stream])
        self._texts = [column.name for column in STREAMS[stream] if column.type == "string"]
        self._rows = 0
        self._size = 0
        self._oldest: float | None = None
        self._sealed: list[tuple[int, int, str]] = []

    def append(self, **row: object) -> None:
        """Add one row; columns that are left out are null.

        Raises:
            ChunkError: the stream has no such column.
            SpoolError: a chunk was full and can't be written.
        """
        self.extend(**{name: (value,) for name, value in row.items()})

    def extend(self, **columns: Sequence[object]) -> None:
        """Add many rows, as columns of equal length; columns that are left out are null.

        Raises:
            ChunkError: the stream has no such column, or the lengths differ.
            SpoolError: a chunk was full and can't be written.
        """
        lengths = {len(values) for values in columns.values()}
        if len(lengths) != 1 or not columns.keys() <= self._columns.keys():
            raise ChunkError(
                f"rows of stream {self._stream.value} are equally long columns out of {', '.join(self._columns)}, "
                f"not {', '.join(columns)} of {sorted(lengths)} values."
            )
        count = lengths.pop()
        if not count:
            return
        for name, values in self._columns.items():
            given = columns.get(name)
            values.extend([None] * count if given is None else given)
        self._rows += count
        self._size += self._width * count + sum(_characters(columns.get(name, ())) for name in self._texts)
        if self._oldest is None:
            self._oldest = time.monotonic()
        if self._size >= CHUNK_SIZE:
            self.flush()

    def flush(self) -> None:
        """Seal what is buffered, durably.

        Raises:
            SpoolError: the disk is full or can't be written.
        """
        while self._rows:
            count = self._rows_of_next_chunk()
            self._seal({name: values[:count] for name, values in self._columns.items()}, count)
            for values in self._columns.values():
                del values[:count]
            self._rows -= count
        self._size = 0
        self._oldest = None

    def flush_older_than(self, seconds: float) -> None:
        """Seal what is buffered when its oldest row is that old."""
        if self._oldest is not None and time.monotonic() - self._oldest >= seconds:
            self.flush()

    def manifest(self) -> StreamManifest | None:
        """What was sealed; None when it is nothing."""
        if not self._sealed:
            return None
        return StreamManifest(
            process=self._process,
            stream=self._stream,
            chunks=len(self._sealed),
            rows=sum(rows for rows, _, _ in self._sealed),
            bytes=sum(size for _, size, _ in self._sealed),
            sha256=digest_of_digests(digest for _, _, digest in self._sealed),
        )

    def _rows_of_next_chunk(self) -> int:
        if not self._texts:
            return min(self._rows, max(1, CHUNK_SIZE // self._width))
        size = 0
        for row in range(self._rows):
            size += self._width + sum(_characters(self._columns[name][row : row + 1]) for name in self._texts)
            if size >= CHUNK_SIZE:
                return row + 1
        return self._rows

    def _seal(self, columns: dict[str, list[object]], rows: int) -> None:
        body = encode_chunk(self._stream, columns)
        digest = hashlib.sha256(body).hexdigest()
        if self._sealed or not self._lose_first:
            write_durably(self._folder / f"{len(self._sealed):08d}.{rows}.{digest}{_SEALED}", body)
        self._sealed.append((rows, len(body), digest))


class EvidenceWriter:
    """All streams of one process of an attempt; the first chunk of `lost` is dropped on purpose, for fault drills."""

    def __init__(self, attempt_dir: Path, process: str, *, lost: StreamName | None = None) -> None:
        self._lost = lost
        self._attempt_dir = attempt_dir
        self._process = process
        self._streams: dict[StreamName, StreamWriter] = {}

    def stream(self, name: StreamName) -> StreamWriter:
        """The writer of a stream."""
        if name not in self._streams:
            self._streams[name] = StreamWriter(self._attempt_dir, self._process, name, lose_first=name is self._lost)
        return self._streams[name]

    def flush_older_than(self, seconds: float) -> None:
        """Seal every stream whose oldest buffered row is that old."""
        for writer in self._streams.values():
            writer.flush_older_than(seconds)

    def seal(self) -> tuple[StreamManifest, ...]:
        """Seal everything and say what there is; streams without a row are left out."""
        for writer in self._streams.values():
            writer.flush()
        manifests = (self._streams[name].manifest() for name in sorted(self._streams))
        return tuple(manifest for manifest in manifests if manifest is not None)


def write_durably(path: Path, body: bytes) -> None:
    """Make a file that is either whole and on the disk under its name, or not there.

    Raises:
        SpoolError: the disk is full or can't be written.
    """
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    with _spool_errors(path):
        try:
            _make_folder(path.parent)
            with fresh.open("wb") as file:
                file.write(body)
                file.flush()
                os.fsync(file.fileno())
            fresh.rename(path)
            _sync_folder(path.parent)
        except OSError:
            with contextlib.suppress(OSError):
                fresh.unlink(missing_ok=True)
            raise


def require_space(spool_dir: Path) -> None:
    """Write as much as a chunk holds, and remove it.

    Raises:
        SpoolError: the disk is full or can't be written.
    """
    probe = spool_dir / "probe"
    write_durably(probe, bytes(CHUNK_SIZE))
    probe.unlink()


def write_model(path: Path, model: BaseModel) -> None:
    """Write a model as JSON, durably."""
    write_durably(path, model.model_dump_json().encode())


def sealed_chunks(attempt_dir: Path) -> Iterator[SpooledChunk]:
    """Every sealed chunk of an attempt, in order of process, stream and number."""
    for folder in sorted((attempt_dir / "chunks").glob("*/*")):
        for path in sorted(folder.iterdir()):
            if path.suffix not in (_SEALED, _SENT) or path.name.startswith("."):
                continue
            seq, rows, digest = path.stem.split(".")
            yield SpooledChunk(
                folder.parent.name,
                StreamName(folder.name),
                int(seq),
                int(rows),
                digest,
                path,
                path.stat().st_size,
                acknowledged=path.suffix == _SENT,
            )


def pending_chunks(attempt_dir: Path) -> list[SpooledChunk]:
    """Chunks that nobody acknowledged yet."""
    return [chunk for chunk in sealed_chunks(attempt_dir) if not chunk.acknowledged]


def mark_acknowledged(chunk: SpooledChunk) -> None:
    """Note, durably, that the server has a chunk; its bytes stay.

    Raises:
        SpoolError: the disk can't be written.
    """
    sent = chunk.path.with_suffix(_SENT)
    with _spool_errors(sent):
        chunk.path.rename(sent)
        _sync_folder(sent.parent)


def sealed_manifests(attempt_dir: Path) -> tuple[StreamManifest, ...]:
    """What an attempt's folder says that there is, acknowledged or not."""
    by_stream: dict[tuple[str, StreamName], list[SpooledChunk]] = {}
    for chunk in sealed_chunks(attempt_dir):
        by_stream.setdefault((chunk.process, chunk.stream), []).append(chunk)
    return tuple(
        StreamManifest(
            process=process,
            stream=stream,
            chunks=len(found),
            rows=sum(chunk.rows for chunk in found),
            bytes=sum(chunk.bytes for chunk in found),
            sha256=digest_of_digests(chunk.sha256 for chunk in found),
        )
        for (process, stream), found in sorted(by_stream.items())
    )


def write_completion_marker(attempt_dir: Path, process: str, marker: ProcessCompletion) -> None:
    """A process wrote all that it was going to write."""
    write_model(attempt_dir / f"{process}.done.json", marker)


def completion_marker(attempt_dir: Path, process: str) -> ProcessCompletion | None:
    """A process's completion marker; None when there is none that can be read."""
    try:
        return ProcessCompletion.model_validate_json((attempt_dir / f"{process}.done.json").read_bytes())
    except (OSError, ValueError):
        return None


def is_complete(attempt_dir: Path, processes: Sequence[str]) -> bool:
    """Whether every process finished and all that it says it wrote is here, so that the attempt can be completed."""
    said: list[StreamManifest] = []
    for process in processes:
        marker = completion_marker(attempt_dir, process)
        if marker is None:
            return False
        said += marker.streams
    return sorted(said, key=_place) == sorted(sealed_manifests(attempt_dir), key=_place)


def remove_partial_files(attempt_dir: Path) -> None:
    """Remove what was being written when its writer ended."""
    for path in attempt_dir.rglob(".*"):
        path.unlink(missing_ok=True)


def remove_attempt(attempt_dir: Path) -> None:
    """Forget an attempt."""
    shutil.rmtree(attempt_dir, ignore_errors=True)


def quarantine(attempt_dir: Path) -> Path:
    """Take an attempt whose evidence the server refused out of the spool, for somebody to look at; says where it is."""
    kept = attempt_dir.parent.parent / "refused" / attempt_dir.name
    with _spool_errors(kept):
        _make_folder(kept.parent)
        attempt_dir.rename(kept)
        _sync_folder(kept.parent)
        _sync_folder(attempt_dir.parent)
    return kept


def _place(one: StreamManifest) -> tuple[str, str]:
    return one.process, one.stream.value


def _characters(values: Sequence[object]) -> int:
    return sum(len(value) for value in values if isinstance(value, str))


@contextlib.contextmanager
def _spool_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        remedy = "free space on that disk" if error.errno in DISK_IS_FULL else "check the state folder"
        raise SpoolError(f"the spool can't write {path} ({error.strerror}); {remedy}.") from error


def _make_folder(folder: Path) -> None:
    """Make it with its parents, each one's entry on the disk."""
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
