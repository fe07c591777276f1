"""Identifies the generated tokens of a run by the digests that its ranks reported."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence

from pydantic.types import JsonValue

from lem_domain.config.experiment import ExperimentConfig
from lem_domain.results.run import OutputsResult
from lem_server.aggregation.inputs import Summaries

_DIGEST = re.compile(r"[0-9a-f]{64}")


def outputs_result(ranks: Sequence[str], summaries: Summaries, config: ExperimentConfig) -> OutputsResult:
    """Read `outputs_sha256` and `outputs_repeat` from the ranks' completion markers; digests are joined by rank."""
    markers = [summaries.get(rank, {}) for rank in ranks]
    digests = [_digest(summary) for summary in markers]
    known = [digest for digest in digests if digest is not None]
    repeats = [summary.get("outputs_repeat") for summary in markers]
    if any(repeat is False for repeat in repeats):
        repeat: bool | None = False
    else:
        repeat = True if repeats and all(one is True for one in repeats) else None
    whole = hashlib.sha256("".join(known).encode()).hexdigest() if known and len(known) == len(digests) else None
    return OutputsResult(sha256=whole, greedy=config.decoding.temperature == 0, repeat=repeat)


def _digest(summary: Mapping[str, JsonValue]) -> str | None:
    digest = summary.get("outputs_sha256")
    return digest if isinstance(digest, str) and _DIGEST.fullmatch(digest) else None
