"""Identifies the generated tokens of a run by the digests that its ranks reported."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from lem_domain.config.experiment import ExperimentConfig
from lem_domain.ids import Sha256
from lem_domain.results.run import OutputsResult
from lem_server.aggregation.inputs import Summaries
from lem_server.aggregation.json_values import Maybe, Recorded


class _Outputs(Recorded):
    outputs_sha256: Maybe[Sha256] = None
    outputs_repeat: Maybe[bool] = None


def outputs_result(ranks: Sequence[str], summaries: Summaries, config: ExperimentConfig) -> OutputsResult:
    """Read `outputs_sha256` and `outputs_repeat` from the ranks' completion markers; digests are joined by rank."""
    markers = [_Outputs.model_validate(summaries.get(rank, {})) for rank in ranks]
    known = [marker.outputs_sha256 for marker in markers if marker.outputs_sha256 is not None]
    repeats = {marker.outputs_repeat for marker in markers}
    repeat = False if False in repeats else True if repeats == {True} else None
    whole = hashlib.sha256("".join(known).encode()).hexdigest() if known and len(known) == len(markers) else None
    return OutputsResult(sha256=whole, greedy=config.decoding.temperature == 0, repeat=repeat)
