"""Estimates the arithmetic of the window from the model's size, and its share of the devices' peak (MFU).

FLOPs = 2 × N_active × processed tokens + 4 × layers × attention width × sum of context lengths. The first term is a
multiplication and an addition per weight and token, the second the products of queries with keys and of weights with
values (Kaplan et al. 2020, arXiv:2001.08361, table 1; Narayanan et al. 2021, arXiv:2104.04473, appendix), with the real
length of each token's context where they use a mean. A request of p prompt tokens, c of them cached, and g generated
tokens processes p - c + g - 1 tokens, because the last token is never fed back. Norms, softmax, padding and rejected
draft tokens are not counted: this is an estimate of the arithmetic that the work needs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet

import numpy as np

from lem_domain.gpu_peaks import GpuPeak, is_part, peak_of
from lem_domain.results.figures import Figure
from lem_domain.results.run import ComputeResult, WindowResult
from lem_domain.wire.workers import Device, DeviceKind
from lem_server.aggregation.energy.traces import FloatArray
from lem_server.aggregation.evidence_reader import NULL
from lem_server.aggregation.inputs import Summaries
from lem_server.aggregation.json_values import Maybe, Recorded
from lem_server.aggregation.work.requests import RankRequests


class ModelShape(Recorded):
    """A rank's `model`: weights that each token is multiplied with, layers, heads × head size, and number format.

    The format is `tensorfloat32` if float32 numbers are multiplied in TF32.
    """

    matmul_parameters: float
    layers: float
    attention_width: float
    dtype: Maybe[str] = None


def compute_result(
    ranks: Sequence[RankRequests], summaries: Summaries, devices: Sequence[Device], window: WindowResult
) -> ComputeResult:
    """Return the FLOPs of all finished requests, and MFU = FLOPs / (window × peak of the leased devices)."""
    shapes = {rank.process: ModelShape.of(summaries.get(rank.process, {}).get("model")) for rank in ranks}
    silent = ", ".join(process for process, shape in shapes.items() if shape is None)
    if silent:
        flops = Figure(value=None, unit="FLOP", reason=f"{silent} did not report the model's size")
    else:
        done = (request_flops(rank, shape) for rank in ranks if (shape := shapes[rank.process]) is not None)
        flops = Figure(value=float(sum(done)), unit="FLOP")
    dtypes = {None if shape is None else shape.dtype for shape in shapes.values()}
    peak, source = _peak(devices, dtypes)
    mfu = _mfu(flops, peak, window, " or ".join(sorted(map(str, dtypes))))
    return ComputeResult(flops=flops, mfu=mfu, peak_flops_per_s=peak, peak_source=source)


def request_flops(rank: RankRequests, shape: ModelShape) -> float:
    """Sum the formula above over a rank's finished requests that generated a token."""
    use = rank.finished & (rank.generated_tokens > 0)
    cached = np.where(rank.cached_prompt_tokens[use] == NULL, 0, rank.cached_prompt_tokens[use]).astype(np.float64)
    length = rank.prompt_tokens[use] + rank.generated_tokens[use] - 1.0
    processed = float((length - cached).sum())
    contexts = float((length * (length + 1) - cached * (cached + 1)).sum()) / 2
    return 2 * shape.matmul_parameters * processed + 4 * shape.layers * shape.attention_width * contexts


def flops_between(shape: ModelShape, done: FloatArray, after: FloatArray) -> FloatArray:
    """Return the formula above for the tokens of sequences after position `done` up to `after`, counted from 1."""
    contexts = (after * (after + 1) - done * (done + 1)) / 2
    found: FloatArray = (
        2 * shape.matmul_parameters * (after - done) + 4 * shape.layers * shape.attention_width * contexts
    )
    return found


def _mfu(flops: Figure, peak: Figure, window: WindowResult, number_format: str) -> Figure:
    if flops.value is None or peak.value is None:
        return Figure(value=None, unit="1", reason=flops.reason or peak.reason)
    rate = flops.value / window.duration_s
    if rate > peak.value:
        reason = (
            f"the peak of {peak.value:.4g} FLOP/s is below the {rate:.4g} FLOP/s that the work needs: the arithmetic "
            f"ran in another format than {number_format}, or a part of it was not done"
        )
        return Figure(value=None, unit="1", reason=reason)
    return Figure(value=rate / peak.value, unit="1")


def _peak(devices: Sequence[Device], dtypes: AbstractSet[str | None]) -> tuple[Figure, str | None]:
    """Return the peak of all leased GPUs, each once by its UUID, and the sheets that state it."""
    gpus = {device.uuid: device.name for device in devices if device.kind is DeviceKind.GPU}
    known = [dtype for dtype in dtypes if dtype is not None]
    reason = _reason_for_no_format(gpus, known, len(dtypes))
    if reason is not None:
        return Figure(value=None, unit="FLOP/s", reason=reason), None
    total, sources = 0.0, set[str]()
    for uuid, name in gpus.items():
        entry = None if uuid.startswith("MIG-") or is_part(name) else peak_of(name)
        rate = None if entry is None else {str(key): rate for key, rate in entry.flops_per_s.items()}.get(known[0])
        if entry is None or rate is None:
            return Figure(value=None, unit="FLOP/s", reason=_reason_for_no_peak(uuid, name, entry, known[0])), None
        total += rate
        sources.add(entry.sheet)
    return Figure(value=total, unit="FLOP/s"), "; ".join(sorted(sources))


def _reason_for_no_format(gpus: Mapping[str, str], known: Sequence[str], formats: int) -> str | None:
    if not gpus:
        return "no GPU was leased"
    if not known or len(known) < formats:
        return "the number format of the arithmetic is not known"
    if formats > 1:
        return f"the ranks differ in number format ({', '.join(sorted(known))})"
    return None


def _reason_for_no_peak(uuid: str, name: str, entry: GpuPeak | None, number_format: str) -> str:
    if entry is not None:
        return f"{entry.sheet} states no peak of {name} for {number_format}"
    if uuid.startswith("MIG-") or is_part(name):
        return f"{name} is a part of a GPU, of which no data sheet states a peak"
    return f"the peak of {name} is not in the table of GPUs"
