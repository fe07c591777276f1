"""The worker's spool: evidence is stored here before it is sent, and until its attempt is over.

    <spool>/<attempt id>/
        assignment.json                                        the claimed attempt, and the boot that claimed it
        chunks/<process>/<stream>/<seq>.<rows>.<sha256>.chunk  sealed, not acknowledged
        chunks/<process>/<stream>/<seq>.<rows>.<sha256>.sent   acknowledged; kept in case the server needs it again
        <process>.done.json                                    completion marker of the process
        <process>.job.json, <process>.log                      its job and its output
    <spool>/../refused/<attempt id>/                           kept: the server refused its evidence

A file gets its name only when its bytes are on the disk (write, fsync, rename, fsync of the folder). A power cut or a
SIGKILL therefore leaves whole files, and partial ones whose name begins with a dot. Each process writes its streams to
its own folder, so that no lock is needed; the daemon alone renames a chunk from `.chunk` to `.sent`.
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
"""Estimated bytes before compression at which a chunk is sealed. Large enough for one request; with four bytes per
character of text still far below the largest chunk that a server decodes."""

_SEALED, _SENT = ".chunk", ".sent"
DISK_IS_FULL = (errno.ENOSPC, errno.EDQUOT)

_WIDTHS = {"int64": 8, "int32": 4, "float64": 8, "string": 4}
"""Bytes per value in an Arrow buffer; for a string that of its offset, to which its characters are added."""


class SpoolError(LemError):
    """The spool can't be written: the disk is full or broken."""


class SpooledChunk(NamedTuple):
    """A sealed chunk, as its file name describes it."""

    process: str
    stream: StreamName
    seq: int
    rows: int
    sha256: str
    path: Path
    bytes: int
    acknowledged: bool


class StreamWriter:
    """Writes the rows of one stream of one process as sealed chunks."""

    def __init__(self, attempt_dir: Path, process: str, stream: StreamName) -> None:
        self._folder = attempt_dir / "chunks" / process / stream.value
        self._process = process
        self._stream = stream
        self._columns: dict[str, list[object]] = {column.name: [] for column in STREAMS[stream]}
        self._width = sum(_WIDTHS[column.type] for column in STREAMS[stream])
        self._texts = [column.name for column in STREAMS[stream] if column.type == "string"]
        self._rows = 0
        self._size = 0
        self._oldest: float | None = None
        self._sealed: list[SpooledChunk] = []

    def append(self, **row: object) -> None:
        """Add one row; omitted columns are null.

        Raises:
            ChunkError: the stream has no such column.
            SpoolError: a chunk was full and can't be written.
        """
        self.extend(**{name: (value,) for name, value in row.items()})

    def extend(self, **columns: Sequence[object]) -> None:
        """Add rows, given as columns of equal length; omitted columns are null.

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
        """Seal all buffered rows.

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
        """Seal all buffered rows if the oldest was added at least `seconds` ago."""
        if self._oldest is not None and time.monotonic() - self._oldest >= seconds:
            self.flush()

    def manifest(self) -> StreamManifest | None:
        """The manifest of the sealed chunks; None without any."""
        return _manifest(self._sealed) if self._sealed else None

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
        seq = len(self._sealed)
        path = self._folder / f"{seq:08d}.{rows}.{digest}{_SEALED}"
        write_durably(path, body)
        self._sealed.append(
            SpooledChunk(self._process, self._stream, seq, rows, digest, path, len(body), acknowledged=False)
        )


class EvidenceWriter:
    """Writes all streams of one process of an attempt."""

    def __init__(self, attempt_dir: Path, process: str) -> None:
        self._attempt_dir = attempt_dir
        self._process = process
        self._streams: dict[StreamName, StreamWriter] = {}

    def stream(self, name: StreamName) -> StreamWriter:
        """The writer of a stream."""
        if name not in self._streams:
            self._streams[name] = StreamWriter(self._attempt_dir, self._process, name)
        return self._streams[name]

    def flush_older_than(self, seconds: float) -> None:
        """Seal every stream whose oldest buffered row was added at least `seconds` ago."""
        for writer in self._streams.values():
            writer.flush_older_than(seconds)

    def seal(self) -> tuple[StreamManifest, ...]:
        """Seal all streams and return their manifests, without those of empty streams."""
        for writer in self._streams.values():
            writer.flush()
        manifests = (self._streams[name].manifest() for name in sorted(self._streams))
        return tuple(manifest for manifest in manifests if manifest is not None)


def write_durably(path: Path, body: bytes) -> None:
    """Write a file that is whole and on the disk when it has its name; else it does not exist.

    Raises:
        SpoolError: the disk is full or can't be written.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    with _spool_errors(path):
        try:
            _make_folder(path.parent)
            with partial.open("wb") as file:
                file.write(body)
                file.flush()
                # Before the rename: a file system may write the rename to the disk before the bytes.
                os.fsync(file.fileno())
            partial.rename(path)
            # The new name is an entry of the folder, which is on the disk only after an fsync of the folder.
            _sync_folder(path.parent)
        except OSError:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
            raise


def require_space(spool_dir: Path) -> None:
    """Check that a chunk fits on the disk, by writing one and removing it.

    The free space that the file system reports does not include quotas.

    Raises:
        SpoolError: the disk is full or can't be written.
    """
    probe = spool_dir / "probe"
    write_durably(probe, bytes(CHUNK_SIZE))
    probe.unlink()


def write_model(path: Path, model: BaseModel) -> None:
    """Write a model durably as JSON."""
    write_durably(path, model.model_dump_json().encode())


def sealed_chunks(attempt_dir: Path) -> Iterator[SpooledChunk]:
    """Yield every sealed chunk of an attempt, in order of process, stream and sequence number."""
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
    """Sealed chunks that the server has not acknowledged."""
    return [chunk for chunk in sealed_chunks(attempt_dir) if not chunk.acknowledged]


def mark_acknowledged(chunk: SpooledChunk) -> None:
    """Record durably that the server has a chunk; its bytes are kept.

    Raises:
        SpoolError: the disk can't be written.
    """
    sent = chunk.path.with_suffix(_SENT)
    with _spool_errors(sent):
        chunk.path.rename(sent)
        _sync_folder(sent.parent)


def sealed_manifests(attempt_dir: Path) -> tuple[StreamManifest, ...]:
    """Manifests of the chunks in an attempt's folder, acknowledged or not."""
    by_stream: dict[tuple[str, StreamName], list[SpooledChunk]] = {}
    for chunk in sealed_chunks(attempt_dir):
        by_stream.setdefault((chunk.process, chunk.stream), []).append(chunk)
    return tuple(_manifest(found) for _, found in sorted(by_stream.items()))


def write_completion_marker(attempt_dir: Path, process: str, marker: ProcessCompletion) -> None:
    """Record that a process has written all its evidence."""
    write_model(attempt_dir / f"{process}.done.json", marker)


def completion_marker(attempt_dir: Path, process: str) -> ProcessCompletion | None:
    """Read the completion marker of a process; None if it is missing or unreadable."""
    try:
        return ProcessCompletion.model_validate_json((attempt_dir / f"{process}.done.json").read_bytes())
    except (OSError, ValueError):
        return None


def is_complete(attempt_dir: Path, processes: Sequence[str]) -> bool:
    """Whether every process has a completion marker and the folder holds exactly the chunks that the markers list."""
    listed: list[StreamManifest] = []
    for process in processes:
        marker = completion_marker(attempt_dir, process)
        if marker is None:
            return False
        listed += marker.streams
    return sorted(listed, key=_stream_key) == sorted(sealed_manifests(attempt_dir), key=_stream_key)


def remove_partial_files(attempt_dir: Path) -> None:
    """Remove the files that were being written when their writer ended."""
    for path in attempt_dir.rglob(".*"):
        path.unlink(missing_ok=True)


def remove_attempt(attempt_dir: Path) -> None:
    """Remove an attempt from the spool."""
    shutil.rmtree(attempt_dir, ignore_errors=True)


def move_to_refused(attempt_dir: Path) -> Path:
    """Move an attempt whose evidence the server refused out of the spool and return its new folder."""
    kept = attempt_dir.parent.parent / "refused" / attempt_dir.name
    with _spool_errors(kept):
        _make_folder(kept.parent)
        attempt_dir.rename(kept)
        _sync_folder(kept.parent)
        _sync_folder(attempt_dir.parent)
    return kept


def _manifest(chunks: Sequence[SpooledChunk]) -> StreamManifest:
    return StreamManifest(
        process=chunks[0].process,
        stream=chunks[0].stream,
        chunks=len(chunks),
        rows=sum(chunk.rows for chunk in chunks),
        bytes=sum(chunk.bytes for chunk in chunks),
        sha256=digest_of_digests(chunk.sha256 for chunk in chunks),
    )


def _stream_key(one: StreamManifest) -> tuple[str, str]:
    return one.process, one.stream.value


def _characters(values: Sequence[object]) -> int:
    return sum(len(value) for value in values if isinstance(value, str))


@contextlib.contextmanager
def _spool_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        remedy = (
            "free space on that disk"
            if error.errno in DISK_IS_FULL
            else "check that the worker may write to LEM_WORKER_STATE_DIR"
        )
        raise SpoolError(f"the spool can't write {path} ({error.strerror}); {remedy}.") from error


def _make_folder(folder: Path) -> None:
    """Create a folder and its parents; each new entry is on the disk."""
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
