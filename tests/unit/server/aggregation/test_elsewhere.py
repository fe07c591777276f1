"""A large aggregation runs in a process of its own, to the same last byte; its errors come back, its death is told."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from factories.evidence import Evidence, Stored
from lem_domain.evidence import StreamName
from lem_server.aggregation import elsewhere, priority
from lem_server.aggregation.computing import compute
from lem_server.aggregation.errors import EvidenceCorrupt
from lem_server.aggregation.inputs import ChunkSource


@pytest.fixture
def stored() -> Stored:
    made = Evidence(processes=("rank-0", "sampler"), chunk_rows=20)
    for number in range(30):
        made.request(number, number * 0.4, [number * 0.4 + 0.05 * step for step in range(1, 8)])
    made.power([number * 0.1 - 1 for number in range(150)], watts=lambda t: 100 + t, joules=lambda t: 100 * t + 500)
    return made.stored()


def children() -> list[int]:
    return [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]


def spoiled(source: ChunkSource, number: int) -> ChunkSource:
    """One byte of the chunk that is asked for as the nth is another."""
    count = 0

    def chunks(process: str, stream: StreamName) -> Iterator[tuple[int, bytes]]:
        nonlocal count
        for seq, body in source(process, stream):
            count += 1
            yield seq, body[:-1] + bytes([body[-1] ^ 1]) if count == number else body

    return chunks


def test_it_gives_the_same_bytes_under_the_same_key(stored: Stored) -> None:
    before = children()
    assert elsewhere.compute_elsewhere(stored.inputs, stored.source) == compute(stored.inputs, stored.source)
    assert children() == before


def test_everybody_else_goes_first(stored: Stored) -> None:
    before = set(children())
    seen: set[tuple[int, str]] = set()

    def watched(process: str, stream: StreamName) -> Iterator[tuple[int, bytes]]:
        (pid,) = set(children()) - before
        group = Path(f"/proc/{pid}/autogroup")
        seen.add((os.getpriority(os.PRIO_PROCESS, pid), group.read_text().split()[-1] if group.exists() else "10"))
        yield from stored.source(process, stream)

    elsewhere.compute_elsewhere(stored.inputs, watched)
    assert seen == {(min(19, os.getpriority(os.PRIO_PROCESS, 0) + priority.NICENESS), str(priority.NICENESS))}


def test_its_errors_are_those_of_a_computation_here(stored: Stored) -> None:
    with pytest.raises(EvidenceCorrupt) as there:
        elsewhere.compute_elsewhere(stored.inputs, spoiled(stored.source, 2))
    with pytest.raises(EvidenceCorrupt) as here:
        compute(stored.inputs, spoiled(stored.source, 2))
    assert str(there.value) == str(here.value)


def test_a_process_that_dies_is_told(stored: Stored) -> None:
    before = set(children())

    def deadly(process: str, stream: StreamName) -> Iterator[tuple[int, bytes]]:
        for pid in set(children()) - before:
            os.kill(pid, signal.SIGKILL)
        yield from stored.source(process, stream)

    with pytest.raises(RuntimeError, match="ended with -9; give the server more memory"):
        elsewhere.compute_elsewhere(stored.inputs, deadly)


def test_what_is_large_is_counted_in_rows(stored: Stored, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = sum(chunk.rows for view in stored.inputs.held for chunk in view.chunks)
    monkeypatch.setattr(elsewhere, "LARGE_ROWS", rows)
    assert elsewhere.is_large(stored.inputs)
    assert not elsewhere.is_large(replace(stored.inputs, held=stored.inputs.held[:-1]))
