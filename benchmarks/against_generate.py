"""The same model and work measured by LEM's PyTorch backend, and by timing transformers' own `generate`.

    python benchmarks/against_generate.py [--model builtin:smollm2-135m-instruct] [--batch-size 1 8] [--rounds 9]

`generate` is timed by optimum-benchmark's method: one `generate` of one token and one of all tokens, whose difference
is decode. (optimum-benchmark 0.6.0 itself imports `SpecialTokensMixin`, which transformers 5 no longer has, so it can't
run the same engine.) LEM records the time of each token. Both get the same random token ids, one thread and float32,
and both are compared by these definitions:

    prefill = batch size * prompt tokens / time to the first token
    decode  = batch size * (output tokens - 1) / (whole time - time to the first token)

The rounds alternate, so that a busy machine affects both; the figures are computed from the medians.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lem_domain.config.experiment import ExperimentConfig
from lem_domain.evidence.codec import decode_chunk
from lem_domain.evidence.streams import PhaseName, StreamName, rank_name
from lem_worker.backends.pytorch.backend import PyTorchBackend
from lem_worker.models import default_cache_dir, resolve_model
from lem_worker.process.protocol import RankJob
from lem_worker.process.spool import EvidenceWriter, sealed_chunks
from lem_worker.rank.prompts import Request
from lem_worker.rank.recorder import Recorder, Sinks
from lem_worker.rank.token_digests import OutputLedger


class Times:
    """Seconds to the first and to the last token of each round."""

    def __init__(self) -> None:
        self.first: list[float] = []
        self.whole: list[float] = []

    def rates(self, *, batch_size: int, prompt: int, output: int) -> tuple[float, float]:
        """Prefill and decode rate in tokens per second, computed from the medians."""
        first, whole = statistics.median(self.first), statistics.median(self.whole)
        return batch_size * prompt / first, batch_size * (output - 1) / (whole - first)


def time_backend(backend: PyTorchBackend, rows: list[list[int]], folder: Path) -> tuple[float, float]:
    """Run one batch with all its evidence; return the seconds to the first and the last token, from the evidence."""
    writer = EvidenceWriter(folder, rank_name(0))
    sinks = Sinks(writer.stream(StreamName.REQUESTS), writer.stream(StreamName.TOKENS), OutputLedger(keep_ids=False))
    recorder = Recorder(PhaseName.MEASURE, sinks)
    requests = [Request(number, number, tuple(row), 0) for number, row in enumerate(rows)]
    recorder.release(requests, recorder.clock())
    backend.run(requests, recorder)
    recorder.drain()
    writer.seal()
    files = [chunk.path for chunk in sealed_chunks(folder) if chunk.stream is StreamName.REQUESTS]
    (row, *_) = [row for file in files for row in decode_chunk(StreamName.REQUESTS, file.read_bytes()).to_pylist()]
    return tuple((row[name] - row["arrival_ns"]) / 1e9 for name in ("first_token_ns", "last_token_ns"))


def time_generate(model: Any, rows: list[list[int]], output: int) -> tuple[float, float]:
    """Return the seconds of a `generate` of one token and of one of all tokens."""
    ids = torch.tensor(rows)

    def timed(tokens: int) -> float:
        begin = time.perf_counter()
        model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=False,
            pad_token_id=0,
        )
        return time.perf_counter() - begin

    return timed(1), timed(output)


def compare(model: str, *, batch_size: int, prompt: int, output: int, rounds: int) -> None:
    """Print both rates and their ratio."""
    path = resolve_model(model, cache_dir=default_cache_dir()).path_or_id
    backend = PyTorchBackend()
    backend.load(_job(model, path, output=output, batch_size=batch_size))
    assert backend._live is not None
    live = backend._live.model
    rows = torch.randint(3, 1000, (batch_size, prompt)).tolist()
    backend_times, generate_times = Times(), Times()
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(-1, rounds):  # the first round warms both up
            works: list[tuple[Times, Callable[[], tuple[float, float]]]] = [
                (backend_times, lambda turn=turn: time_backend(backend, rows, Path(folder) / str(turn))),  # type: ignore[misc]
                (generate_times, lambda: time_generate(live, rows, output)),
            ]
            for times, work in works if turn % 2 else reversed(works):
                first, whole = work()
                if turn >= 0:
                    times.first.append(first)
                    times.whole.append(whole)
    shape = {"batch_size": batch_size, "prompt": prompt, "output": output}
    for name, ours, theirs in zip(
        ("prefill", "decode"), backend_times.rates(**shape), generate_times.rates(**shape), strict=True
    ):
        print(
            f"{model} batch {batch_size} {name}: {ours:.1f} tok/s by LEM, {theirs:.1f} tok/s by generate, "
            f"ratio {ours / theirs:.3f}"
        )


def _job(model: str, path: str, *, output: int, batch_size: int) -> RankJob:
    config = ExperimentConfig.model_validate(
        {
            "model": model,
            "precision": "float32",
            "output": {"max_tokens": output},
            "pytorch": {"batch_size": batch_size, "num_threads": 1},
        }
    )
    return RankJob(
        attempt_id="against",
        rank=0,
        world_size=1,
        config=config,
        model_path=path,
        prompts=("",),
        spool="unused",
        devices=(),
    )


def main() -> None:
    """Compare at every batch size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="builtin:smollm2-135m-instruct")
    parser.add_argument("--batch-size", nargs="+", type=int, default=(1, 8))
    parser.add_argument("--prompt", type=int, default=32)
    parser.add_argument("--output", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    torch.manual_seed(0)
    for batch_size in options.batch_size:
        compare(
            options.model,
            batch_size=batch_size,
            prompt=options.prompt,
            output=options.output,
            rounds=options.rounds,
        )


if __name__ == "__main__":
    main()
