"""Cost of recording: the PyTorch backend with its evidence, against a bare decode loop of the same model.

    python benchmarks/overhead.py [--model builtin:tiny-llama ...] [--batch-size 1 8] [--pairs 15]

Both run in one process on the same prompts, in pairs whose order alternates, so that a busy machine affects both. The
figure is the ratio of their output rates in wall time (recorded / bare): 1.00 is no overhead, and less than 0.97 fails.
The bare loop is timed from token ids to token ids, without token times, requests or evidence.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import DynamicCache

from lem_domain.config.experiment import ExperimentConfig
from lem_domain.evidence.codec import preload
from lem_domain.evidence.streams import PhaseName, StreamName, rank_name
from lem_domain.wire.workers import Device
from lem_worker.backends.pytorch.backend import PyTorchBackend
from lem_worker.models import default_cache_dir, resolve_model
from lem_worker.process.protocol import RankJob
from lem_worker.process.spool import EvidenceWriter
from lem_worker.rank.measured_window import Ticker
from lem_worker.rank.prompts import Request, requests_of
from lem_worker.rank.recorder import Recorder, Sinks
from lem_worker.rank.token_digests import OutputLedger

MODELS = ("builtin:tiny-llama", "builtin:smollm2-135m-instruct")
LEAST_RATIO = 0.97
TEXT = "Everyone is permitted to copy and distribute verbatim copies of this license document"


@torch.inference_mode()
def bare_loop(backend: PyTorchBackend, requests: Sequence[Request], max_tokens: int) -> list[list[int]]:
    """The shortest loop with the same tokens; the prompts are equal, so it needs neither padding nor a mask."""
    assert backend._live is not None
    model = backend._live.model
    cache = DynamicCache(config=model.config)
    current = torch.tensor([request.token_ids for request in requests], device=model.device)
    tokens = []
    for _ in range(max_tokens):
        logits = model(input_ids=current, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
        current = logits[:, -1].argmax(dim=-1, keepdim=True)
        tokens.append(current)
    rows: list[list[int]] = torch.cat(tokens, dim=1).tolist()
    return rows


def timed(work: Callable[[], object]) -> float:
    """Wall time of a call in s, after a garbage collection."""
    gc.collect()
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


class Overhead(NamedTuple):
    """Quartiles of the ratio of output rates, recorded over bare, and the rate with recording."""

    ratios: tuple[float, float, float]
    tok_s: float
    same_tokens: bool


def compare(
    model: Mapping[str, str],
    folder: Path,
    *,
    batch_size: int,
    pairs: int,
    max_tokens: int,
    devices: tuple[Device, ...] = (),
    precision: str = "float32",
) -> Overhead:
    """Time both loops alternately in this process; on the CPU with one thread unless devices are given."""
    config = ExperimentConfig.model_validate(
        {
            "model": model,
            "precision": precision,
            "output": {"max_tokens": max_tokens},
            "pytorch": {"batch_size": batch_size, "num_threads": None if devices else 1},
        }
    )
    job = RankJob(
        attempt_id="overhead",
        rank=0,
        world_size=1,
        config=config,
        model_path=resolve_model(model["id"], cache_dir=default_cache_dir()).path_or_id,
        prompts=(TEXT,) * batch_size,
        spool=str(folder / "spool"),
        devices=devices,
    )
    backend = PyTorchBackend()
    backend.load(job)
    prompts = backend.prepare(list(enumerate(job.prompts)))
    writer = EvidenceWriter(folder / f"spool-{batch_size}", rank_name(0))
    ledger = OutputLedger(keep_ids=True)
    sinks = Sinks(writer.stream(StreamName.REQUESTS), writer.stream(StreamName.TOKENS), ledger)
    ticker = Ticker(PhaseName.MEASURE, lambda _: None, time.monotonic_ns())
    recorder = Recorder(PhaseName.MEASURE, sinks, ticker)
    repetition = 0

    def recorded() -> None:
        nonlocal repetition
        requests = requests_of(prompts, repetition=repetition, first_id=repetition * len(prompts), seed=0)
        repetition += 1
        recorder.release(requests, recorder.clock())
        backend.run(requests, recorder)
        recorder.drain()
        writer.flush_older_than(5.0)

    sample = requests_of(prompts, repetition=0, first_id=0, seed=0)
    preload()
    recorded()  # warms the model up, and gives the tokens to compare
    same = bare_loop(backend, sample, max_tokens) == [list(token_ids) for _, token_ids in ledger.kept()]
    gc.collect()
    gc.freeze()  # like a rank before its window
    ratios, speeds = [], []
    for pair in range(pairs):
        works = {"recorded": recorded, "bare": lambda: bare_loop(backend, sample, max_tokens)}
        order = ("recorded", "bare") if pair % 2 else ("bare", "recorded")
        seconds = {name: timed(works[name]) for name in order}
        ratios.append(seconds["bare"] / seconds["recorded"])
        speeds.append(batch_size * max_tokens / seconds["recorded"])
    writer.seal()
    backend.unload()
    low, middle, high = statistics.quantiles(ratios, n=4)
    return Overhead((low, middle, high), statistics.median(speeds), same)


def main() -> None:
    """Compare on every model and batch size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", default=MODELS)
    parser.add_argument("--batch-size", nargs="+", type=int, default=(1, 8))
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--max-tokens", type=int, default=64)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = [
            print_overhead(
                f"{model} batch {size}",
                compare(
                    {"id": model},
                    Path(folder) / model,
                    batch_size=size,
                    pairs=options.pairs,
                    max_tokens=options.max_tokens,
                ),
            )
            for model in options.model
            for size in options.batch_size
        ]
    if min(found) < LEAST_RATIO:
        raise SystemExit(f"recording costs more than {1 - LEAST_RATIO:.0%} of the output rate.")


def print_overhead(name: str, overhead: Overhead) -> float:
    """Print one line and return the median ratio."""
    if not overhead.same_tokens:
        raise SystemExit("the two loops give different tokens, so their times can't be compared.")
    low, middle, high = overhead.ratios
    print(
        f"{name}: output rate recorded / bare {middle:.4f} (quartiles {low:.4f} to {high:.4f}), "
        f"{overhead.tok_s:.0f} tok/s recorded",
        flush=True,
    )
    return middle


if __name__ == "__main__":
    main()
