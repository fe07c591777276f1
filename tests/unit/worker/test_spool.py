"""The spool keeps every sealed row, whatever happens to the process that writes it."""

from __future__ import annotations

import errno
import hashlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lem_domain.evidence.codec import ChunkError, decode_chunk
from lem_domain.evidence.streams import MAX_CHUNK_BYTES, StreamName
from lem_domain.wire.workers import ProcessCompletion
from lem_worker.process import spool
from lem_worker.process.spool import CHUNK_SIZE, EvidenceWriter, SpoolError, StreamWriter

RANK = "rank-0"


def rows_in(folder: Path, stream: StreamName) -> list[dict[str, Any]]:
    found = [chunk for chunk in spool.sealed_chunks(folder) if chunk.stream is stream]
    return [row for chunk in found for row in decode_chunk(stream, chunk.path.read_bytes()).to_pylist()]


def event(number: int, detail: str | None = None) -> dict[str, Any]:
    return {"time_ns": number, "kind": "test", "detail": detail}


def written(folder: Path, chunks: int = 3) -> EvidenceWriter:
    """A folder with so many chunks of one row in one stream."""
    writer = EvidenceWriter(folder, RANK)
    for number in range(chunks):
        writer.stream(StreamName.EVENTS).append(**event(number))
        writer.stream(StreamName.EVENTS).flush()
    return writer


@settings(max_examples=40)
@given(
    st.lists(
        st.one_of(
            st.just("flush"),
            st.lists(st.tuples(st.integers(0, 2**62), st.none() | st.text(max_size=30)), min_size=1, max_size=20),
        ),
        max_size=8,
    )
)
def test_what_was_appended_is_read_back_in_order_and_the_manifest_reports_it(steps: list[Any]) -> None:
    expected = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        writer = EvidenceWriter(folder, RANK)
        stream = writer.stream(StreamName.EVENTS)
        for step in steps:
            if step == "flush":
                stream.flush()
                continue
            rows = [event(time_ns, detail) for time_ns, detail in step]
            stream.append(**rows[0])
            stream.extend(**{key: [row[key] for row in rows[1:]] for key in rows[0]})
            expected += rows
        manifest = writer.seal()
        assert rows_in(folder, StreamName.EVENTS) == expected
        assert manifest == spool.sealed_manifests(folder)
        assert sum(one.rows for one in manifest) == len(expected)
        assert bool(manifest) is bool(expected)


def test_a_full_buffer_is_sealed_without_being_asked(tmp_path: Path) -> None:
    stream = StreamWriter(tmp_path, RANK, StreamName.TOKENS)
    count = 2 * CHUNK_SIZE // 20
    stream.extend(request_id=[0] * count, index=range(count), time_ns=range(count))
    assert [row["index"] for row in rows_in(tmp_path, StreamName.TOKENS)] == list(range(count))
    assert len(spool.pending_chunks(tmp_path)) >= 2


def test_long_texts_make_many_chunks_that_a_server_takes(tmp_path: Path) -> None:
    """By rows alone, a chunk of generated texts would decode to more than any server accepts."""
    texts = [os.urandom(50_000).hex() for _ in range(60)]
    stream = StreamWriter(tmp_path, RANK, StreamName.EVENTS)
    stream.extend(time_ns=range(60), kind=["output"] * 60, detail=texts)
    stream.flush()
    found = spool.pending_chunks(tmp_path)
    assert len(found) >= 20
    assert max(chunk.bytes for chunk in found) < MAX_CHUNK_BYTES / 4
    assert [row["detail"] for row in rows_in(tmp_path, StreamName.EVENTS)] == texts


def test_a_column_that_the_stream_has_not_is_refused_instead_of_dropped(tmp_path: Path) -> None:
    stream = StreamWriter(tmp_path, RANK, StreamName.EVENTS)
    with pytest.raises(ChunkError, match="detial"):
        stream.append(time_ns=1, kind="x", detial="y")
    with pytest.raises(ChunkError, match="equally long"):
        stream.extend(time_ns=[1, 2], kind=["x"])


def test_old_rows_are_sealed_and_young_ones_wait(tmp_path: Path) -> None:
    writer = EvidenceWriter(tmp_path, RANK)
    writer.stream(StreamName.EVENTS).append(**event(0))
    writer.flush_older_than(3600)
    assert spool.pending_chunks(tmp_path) == []
    writer.flush_older_than(0)
    assert len(spool.pending_chunks(tmp_path)) == 1


def test_acknowledged_chunks_are_not_pending_and_their_bytes_stay(tmp_path: Path) -> None:
    before = written(tmp_path).seal()
    first, *others = spool.pending_chunks(tmp_path)
    body = first.path.read_bytes()
    spool.mark_acknowledged(first)
    assert spool.pending_chunks(tmp_path) == others
    again = next(spool.sealed_chunks(tmp_path))
    assert again.acknowledged and again.path.read_bytes() == body
    assert again == first._replace(path=again.path, acknowledged=True)
    assert spool.sealed_manifests(tmp_path) == before


def test_an_attempt_is_whole_only_with_all_that_its_markers_name(tmp_path: Path) -> None:
    marker = ProcessCompletion(streams=written(tmp_path).seal())
    assert not spool.is_complete(tmp_path, [RANK])
    spool.write_completion_marker(tmp_path, RANK, marker)
    assert spool.is_complete(tmp_path, [RANK])
    assert not spool.is_complete(tmp_path, [RANK, "sampler"])
    spool.pending_chunks(tmp_path)[-1].path.unlink()
    assert not spool.is_complete(tmp_path, [RANK])


@pytest.mark.parametrize("name", ["rank-0.done.json", "*.chunk"])
def test_an_attempt_with_a_file_that_was_cut_short_is_not_whole(tmp_path: Path, name: str) -> None:
    """Such as a disk leaves that does not keep what it was told to."""
    spool.write_completion_marker(tmp_path, RANK, ProcessCompletion(streams=written(tmp_path).seal()))
    assert spool.is_complete(tmp_path, [RANK])
    path = next(tmp_path.rglob(name))
    os.truncate(path, path.stat().st_size // 2)
    assert not spool.is_complete(tmp_path, [RANK])
    os.truncate(path, 0)
    assert not spool.is_complete(tmp_path, [RANK])


def test_what_was_being_written_does_not_count_and_is_swept_away(tmp_path: Path) -> None:
    spool.write_completion_marker(tmp_path, RANK, ProcessCompletion(streams=written(tmp_path).seal()))
    before = sorted(tmp_path.rglob("*"))
    chunk = spool.pending_chunks(tmp_path)[-1]
    for name, body in (
        (f".{chunk.seq + 1:08d}.1.{'0' * 64}.chunk.77", b"half of"),
        (f".{chunk.path.name}.77", chunk.path.read_bytes()),
    ):
        (chunk.path.parent / name).write_bytes(body)
    (tmp_path / ".rank-1.done.json.77").write_bytes(b"")
    assert spool.is_complete(tmp_path, [RANK])
    assert [one.seq for one in spool.sealed_chunks(tmp_path)] == [0, 1, 2]
    spool.remove_partial_files(tmp_path)
    assert sorted(tmp_path.rglob("*")) == before


class Recording:
    """What happens to files, in order: `sync` of a file or a folder, `rename` to a name."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.steps: list[tuple[str, str]] = []
        fsync, rename = os.fsync, os.rename

        def recorded_fsync(descriptor: int) -> None:
            self.steps.append(("sync", Path(f"/proc/self/fd/{descriptor}").readlink().name))
            fsync(descriptor)

        def recorded_rename(source: Path, target: Path) -> None:
            self.steps.append(("rename", f"{Path(source).name} -> {Path(target).name}"))
            rename(source, target)

        monkeypatch.setattr(os, "fsync", recorded_fsync)
        monkeypatch.setattr(os, "rename", recorded_rename)


def seal_a_chunk(attempt: Path) -> str:
    written(attempt, chunks=1)
    return spool.pending_chunks(attempt)[0].path.name


def mark_a_process(attempt: Path) -> str:
    spool.write_completion_marker(attempt, RANK, ProcessCompletion(streams=()))
    return "rank-0.done.json"


def note_the_assignment(attempt: Path) -> str:
    spool.write_model(attempt / "assignment.json", ProcessCompletion(streams=()))
    return "assignment.json"


@pytest.mark.parametrize("write", [seal_a_chunk, mark_a_process, note_the_assignment])
def test_a_file_gets_its_name_when_it_is_on_the_disk_and_the_name_follows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[Path], str]
) -> None:
    recording = Recording(monkeypatch)
    name = write(tmp_path / "spool" / "att_1")
    target = next(tmp_path.rglob(name))
    fresh = f".{name}.{os.getpid()}"
    *folders, synced, renamed, named = recording.steps
    assert [synced, renamed, named] == [
        ("sync", fresh),
        ("rename", f"{fresh} -> {name}"),
        ("sync", target.parent.name),
    ]
    # Each folder that had to be made: its own entry, in its parent.
    made = target.parent.relative_to(tmp_path).parts
    assert folders == [("sync", parent) for parent in (tmp_path.name, *made[:-1])]


def test_an_acknowledgement_is_on_the_disk_when_it_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path, chunks=1)
    [chunk] = spool.pending_chunks(tmp_path)
    recording = Recording(monkeypatch)
    spool.mark_acknowledged(chunk)
    assert recording.steps == [
        ("rename", f"{chunk.path.name} -> {chunk.path.stem}.sent"),
        ("sync", chunk.path.parent.name),
    ]


def test_what_the_server_refused_leaves_the_spool_and_is_kept(tmp_path: Path) -> None:
    attempt = tmp_path / "spool" / "att_1"
    written(attempt)
    kept = spool.move_to_refused(attempt)
    assert not attempt.exists()
    assert len(spool.pending_chunks(kept)) == 3


def test_a_full_disk_is_reported_and_leaves_no_chunk_that_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = written(tmp_path, chunks=1)
    writer.stream(StreamName.EVENTS).append(**event(1))

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(SpoolError, match=r"No space left on device.*free space"):
            writer.seal()
    assert [chunk.seq for chunk in spool.sealed_chunks(tmp_path)] == [0]
    assert not list(tmp_path.rglob(".*"))
    assert [one.rows for one in writer.seal()] == [2]


WRITE_FOR_EVER = """
import sys
from pathlib import Path
from lem_domain.evidence.streams import StreamName
from lem_worker.process.spool import EvidenceWriter
writer = EvidenceWriter(Path(sys.argv[1]), "rank-0")
number = 0
while True:
    for stream in (StreamName.TOKENS, StreamName.EVENTS):
        for _ in range(50):
            row = {"request_id": 0, "index": number} if stream is StreamName.TOKENS else {"kind": "k", "detail": "d"}
            writer.stream(stream).append(time_ns=number, **row)
            number += 1
        writer.stream(stream).flush()
    print("sealed", flush=True)
"""


@pytest.mark.parametrize("rounds", [1, 3, 7, 20])
def test_a_kill_at_any_instant_leaves_whole_chunks_without_a_gap(tmp_path: Path, rounds: int) -> None:
    with subprocess.Popen([sys.executable, "-c", WRITE_FOR_EVER, str(tmp_path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        for _ in range(rounds):
            assert process.stdout.readline() == b"sealed\n"
        process.send_signal(signal.SIGKILL)
    found = list(spool.sealed_chunks(tmp_path))
    for stream in (StreamName.TOKENS, StreamName.EVENTS):
        mine = [chunk for chunk in found if chunk.stream is stream]
        assert [chunk.seq for chunk in mine] == list(range(len(mine)))
        assert len(mine) >= rounds
    for chunk in found:
        body = chunk.path.read_bytes()
        assert hashlib.sha256(body).hexdigest() == chunk.sha256
        assert decode_chunk(chunk.stream, body).num_rows == chunk.rows == 50
