"""What must hold when everything has come to rest, read from the database itself and over REST."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections import defaultdict
from collections.abc import Iterable
from itertools import pairwise
from typing import Any
from uuid import UUID

import asyncpg
import httpx

from chaos.journal import Acknowledged, Entries
from chaos.user import Submitted
from chaos.watch import processes_of_attempts
from lem_domain.evidence.streams import digest_of_digests
from lem_domain.ids import IdKind, format_id
from lem_domain.states import EDGES, ENDED_STATES

PROCESSES_GONE_WITHIN_S = 150.0


async def acknowledged_chunks(entries: Entries, api: httpx.AsyncClient) -> tuple[list[str], list[str], int, int]:
    """Read every chunk of the journal again.

    Returns what is lost or changed of what workers were told, the same of what was answered and not delivered, and how
    many there are of each.
    """
    told = {one for one in entries.chunks if one.delivered}
    untold = {one for one in entries.chunks if not one.delivered and one._replace(delivered=True) not in told}
    gate = asyncio.Semaphore(4)

    async def read(chunk: Acknowledged) -> str | None:
        place = f"processes/{chunk.process}/streams/{chunk.stream}/chunks/{chunk.seq}"
        async with gate:
            answer = await api.get(f"/api/v1/attempts/{chunk.attempt}/{place}")
        if answer.status_code != 200:
            return f"{chunk.attempt} {place}: {answer.status_code} {answer.text[:200]}"
        if hashlib.sha256(answer.content).hexdigest() != chunk.sha256:
            return f"{chunk.attempt} {place} has other bytes"
        return None

    found = [[one for one in await asyncio.gather(*map(read, some)) if one] for some in (told, untold)]
    return found[0], found[1], len(told), len(untold)


async def acknowledged_completions(entries: Entries, connection: asyncpg.Connection) -> list[str]:
    """Attempts whose workers were told that they are completed, and which are not."""
    rows = await connection.fetch("SELECT id FROM attempts WHERE outcome = 'completed'")
    completed = {format_id(IdKind.ATTEMPT, row["id"]) for row in rows}
    return [f"{attempt} is not completed" for attempt in sorted(entries.completed - completed)]


async def illegal_transitions(connection: asyncpg.Connection) -> tuple[list[str], int]:
    """Replay the log of every run against the edges of the domain; says how many entries there are."""
    edges = {(edge.source.value, edge.target.value, edge.actor.value) for edge in EDGES}
    rows = await connection.fetch("SELECT id, run_id, source, target, actor, at FROM run_transitions ORDER BY id")
    states = dict(await connection.fetch("SELECT id, state FROM runs"))
    wrong = []
    for run, entries in _grouped(rows, "run_id").items():
        if entries[0]["source"] is not None or entries[0]["target"] != "queued":
            wrong.append(f"run {run} begins with {_edge(entries[0])}")
        for before, entry in pairwise(entries):
            if entry["source"] != before["target"]:
                wrong.append(f"run {run}: {_edge(entry)} follows {_edge(before)}")
            if (entry["source"], entry["target"], entry["actor"]) not in edges:
                wrong.append(f"run {run}: {_edge(entry)} is no edge")
        if entries[-1]["target"] != states.get(run):
            wrong.append(f"run {run} is {states.get(run)} and its log ends with {_edge(entries[-1])}")
    wrong += [f"run {run} has no log" for run in set(states) - {row["run_id"] for row in rows}]
    return wrong, len(rows)


async def stuck_runs(connection: asyncpg.Connection) -> list[str]:
    """Runs that did not come to an end."""
    ended = [state.value for state in ENDED_STATES]
    rows = await connection.fetch("SELECT id, state, message FROM runs WHERE state <> ALL($1::text[])", ended)
    return [f"run {row['id']} is {row['state']} ({row['message']})" for row in rows]


_CLAIMED = """
    SELECT a.id, a.run_id, a.devices, a.number, a.outcome, coalesce(t.at, a.claimed_at) AS claimed_at, a.ended_at
      FROM attempts a
      LEFT JOIN run_transitions t ON t.attempt_id = a.id AND t.target = 'initialised'
     ORDER BY 6
"""


async def overlapping_leases(connection: asyncpg.Connection) -> tuple[list[str], int]:
    """Attempts that held one run or one device at the same time; says how many attempts there are."""
    rows = await connection.fetch(_CLAIMED)
    held: dict[str, list[Any]] = defaultdict(list)
    for row in rows:
        held[f"run {row['run_id']}"].append(row)
        for device in row["devices"]:
            held[f"device {device}"].append(row)
    wrong = [
        f"{what}: attempt {after['id']} was claimed at {after['claimed_at']}, attempt {before['id']} ended at "
        f"{before['ended_at']}"
        for what, attempts in held.items()
        for before, after in pairwise(attempts)
        if before["ended_at"] is None or after["claimed_at"] < before["ended_at"]
    ]
    wrong += [f"attempt {row['id']} has not ended" for row in rows if row["ended_at"] is None]
    return wrong, len(rows)


_LATE = """
    SELECT 'chunk ' || c.process || '/' || c.stream || '/' || c.seq AS what, a.id, c.received_at AS at, a.ended_at
      FROM chunks c JOIN attempts a ON a.id = c.attempt_id WHERE c.received_at > a.ended_at
    UNION ALL
    SELECT 'log ' || l.process || '/' || l.seq, a.id, l.received_at, a.ended_at
      FROM logs l JOIN attempts a ON a.id = l.attempt_id WHERE l.received_at > a.ended_at
    UNION ALL
    SELECT 'completion ' || p.process, a.id, p.completed_at, a.ended_at
      FROM process_results p JOIN attempts a ON a.id = p.attempt_id WHERE p.completed_at > a.ended_at
"""


async def late_writes(connection: asyncpg.Connection) -> list[str]:
    """What was taken of an attempt after it had ended: the fence had a hole."""
    return [
        f"{row['what']} of attempt {row['id']} came at {row['at']}, it ended at {row['ended_at']}"
        for row in await connection.fetch(_LATE)
    ]


async def wrong_completions(connection: asyncpg.Connection) -> tuple[list[str], int]:
    """Completed runs without exactly one completed attempt, and manifests that are not what is stored.

    Says how many completed runs there are.
    """
    wrong = []
    runs = await connection.fetch(
        """
        SELECT r.id, r.state, r.current_attempt,
               array_remove(array_agg(CASE WHEN a.outcome = 'completed' THEN a.id END), NULL) AS completed,
               r.state IN ('completed', 'aggregated') OR EXISTS (
                   SELECT 1 FROM run_transitions t WHERE t.run_id = r.id AND t.target = 'completed'
               ) AS is_completed
          FROM runs r LEFT JOIN attempts a ON a.run_id = r.id GROUP BY r.id
        """
    )
    for run in runs:
        expected = [run["current_attempt"]] if run["is_completed"] else []
        if run["completed"] != expected:
            wrong.append(f"run {run['id']} is {run['state']} and its completed attempts are {run['completed']}")
    stored: dict[UUID, set[Any]] = defaultdict(set)
    pieces: dict[tuple[UUID, str, str], list[Any]] = defaultdict(list)
    for row in await connection.fetch("SELECT attempt_id, process, stream, seq, rows, bytes, sha256 FROM chunks"):
        pieces[(row["attempt_id"], row["process"], row["stream"])].append(row)
    for (attempt, process, stream), rows in pieces.items():
        rows.sort(key=lambda row: row["seq"])
        seqs = [row["seq"] for row in rows]
        digest = digest_of_digests(row["sha256"].hex() for row in rows)
        whole = seqs == list(range(len(rows)))
        size, count = sum(row["bytes"] for row in rows), sum(row["rows"] for row in rows)
        stored[attempt].add((process, stream, len(rows) if whole else -1, count, size, digest))
    for row in await connection.fetch("SELECT id, manifest FROM attempts WHERE outcome = 'completed'"):
        manifest = {
            (one["process"], one["stream"], one["chunks"], one["rows"], one["bytes"], one["sha256"])
            for one in json.loads(row["manifest"])
        }
        if manifest != stored[row["id"]]:
            wrong.append(f"attempt {row['id']}: {manifest ^ stored[row['id']]} differ between manifest and store")
    return wrong, sum(run["is_completed"] for run in runs)


async def corrupt_chunks(connection: asyncpg.Connection) -> tuple[list[str], int]:
    """Stored chunks whose bytes don't have their digest; says how many are stored."""
    rows = await connection.fetch(
        "SELECT attempt_id, process, stream, seq, sha256(body) = sha256 AND length(body) = bytes AS good FROM chunks"
    )
    return [f"chunk {tuple(row)[:4]} is corrupt" for row in rows if not row["good"]], len(rows)


async def wrong_campaigns(connection: asyncpg.Connection, campaigns: Iterable[Submitted]) -> list[str]:
    """Campaigns that are not there exactly once with all of their runs, and claims of what was cancelled or paused."""
    wrong = []
    stored = {
        row["id"]: (row["name"], row["runs"])
        for row in await connection.fetch(
            "SELECT c.id, c.name, count(r.id) AS runs FROM campaigns c LEFT JOIN runs r ON r.campaign_id = c.id "
            "GROUP BY c.id"
        )
    }
    submitted = {one.id: (one.name, one.runs) for one in campaigns}
    if stored != submitted:
        difference = set(stored.items()) ^ set(submitted.items())
        wrong.append(f"stored and submitted campaigns differ: {sorted(map(str, difference))}")
    claims = await connection.fetch(
        "SELECT campaign_id, run_id, at FROM run_transitions WHERE target = 'initialised' ORDER BY id"
    )
    by_campaign = _grouped(claims, "campaign_id")
    for one in campaigns:
        for claim in by_campaign.get(one.id, []):
            if one.cancelled_at is not None and claim["at"] > one.cancelled_at:
                wrong.append(f"run {claim['run_id']} was claimed at {claim['at']}, cancelled by {one.cancelled_at}")
            for begin, end in one.paused:
                if begin < claim["at"] < end:
                    wrong.append(f"run {claim['run_id']} was claimed at {claim['at']}, paused {begin} to {end}")
    return wrong


async def aggregate_all(connection: asyncpg.Connection, api: httpx.AsyncClient) -> tuple[list[str], int]:
    """Aggregate every completed run; says which can't be and how many could."""
    wrong = []
    runs = [row["id"] for row in await connection.fetch("SELECT id FROM runs WHERE state = 'completed'")]
    for run in runs:
        answer = await api.post(f"/api/v1/runs/{format_id(IdKind.RUN, run)}:aggregate")
        if answer.status_code != 200:
            wrong.append(f"run {run} could not be aggregated: {answer.status_code} {answer.text[:500]}")
    return wrong, len(runs)


async def left_processes(connection: asyncpg.Connection) -> list[str]:
    """Processes of attempts of this system that still live."""
    ours = {format_id(IdKind.ATTEMPT, row["id"]) for row in await connection.fetch("SELECT id FROM attempts")}
    deadline = time.monotonic() + PROCESSES_GONE_WITHIN_S
    while True:
        left = [f"{name}: {what}" for name, what in processes_of_attempts() if name in ours]
        if not left or time.monotonic() > deadline:
            return left
        await asyncio.sleep(0.5)


def _edge(entry: Any) -> str:
    return f"{entry['source']} to {entry['target']} by {entry['actor']} at {entry['at']}"


def _grouped(rows: Iterable[Any], key: str) -> dict[UUID, list[Any]]:
    groups: dict[UUID, list[Any]] = defaultdict(list)
    for row in rows:
        groups[row[key]].append(row)
    return groups
