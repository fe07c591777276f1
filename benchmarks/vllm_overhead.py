"""Cost of recording with vLLM: against the engine's own loop, and against vLLM's own latency benchmark.

    .venv-vllm/bin/python benchmarks/vllm_overhead.py [--model builtin:tiny-llama] [--batch-size 8] [--pairs 21]

The backend with its evidence and the engine's own loop run on one engine in this process, in pairs whose order
alternates. The figure is the ratio of their output rates in wall time (recorded / the engine's own): 1.00 is no
overhead, and less than 0.97 fails. The engine's own loop adds the same requests, steps until all are done and reads
nothing in between; both must give the same tokens. vLLM's benchmark runs in a subprocess before and after them;
docs/validation.md explains what it counts differently.

Ratios of CPU time of a single thread are printed too: other processes of a busy machine disturb them less.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lem_domain.config.experiment import ExperimentConfig
from lem_domain.evidence.codec import preload
from lem_domain.evidence.streams import PhaseName, StreamName, rank_name
from lem_worker.backends.vllm.backend import VllmBackend
from lem_worker.models import default_cache_dir, resolve_model
from lem_worker.process.protocol import RankJob
from lem_worker.process.spool import EvidenceWriter
from lem_worker.rank.measured_window import Ticker
from lem_worker.rank.prompts import PreparedPrompt, Request, requests_of
from lem_worker.rank.recorder import Recorder, Sinks
from lem_worker.rank.request_feed import RequestFeed
from lem_worker.rank.token_digests import OutputLedger
from lem_worker.rank.traffic import OnceArrivals

KV_CACHE_BYTES = 256 * 2**20
INPUT_TOKENS = 32
_LATENCY_SCRIPT = (
    "import sys, time\n"
    "time.perf_counter = time.process_time\n"
    "from vllm.benchmarks.latency import add_cli_args, main\n"
    "from vllm.utils.argparse_utils import FlexibleArgumentParser\n"
    "if __name__ == '__main__':\n"
    "    parser = FlexibleArgumentParser()\n"
    "    add_cli_args(parser)\n"
    "    main(parser.parse_args(sys.argv[1:]))\n"
)


def settings(batch_size: int) -> dict[str, object]:
    """Engine settings of both loops, equal to those passed to vLLM's own benchmark."""
    return {
        "enforce_eager": True,
        "kv_cache_memory_bytes": KV_CACHE_BYTES,
        "max_num_seqs": batch_size,
        "max_model_len": 1024,
        "enable_prefix_caching": False,
    }


def own_loop(backend: VllmBackend, requests: Sequence[Request], max_tokens: int) -> dict[int, list[int]]:
    """Run the loop of `LLM.generate`; return the tokens of each request."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    assert backend._engine is not None
    engine = backend._engine.engine
    for request in requests:
        params = SamplingParams(
            max_tokens=max_tokens,
            temperature=1.0,
            seed=request.seed,
            ignore_eos=True,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        engine.add_request(str(request.request_id), {"prompt_token_ids": list(request.token_ids)}, params)
    tokens = {}
    while engine.has_unfinished_requests():
        for output in engine.step():
            tokens[int(output.request_id)] = list(output.outputs[0].token_ids)
    return tokens


class Seconds(NamedTuple):
    """CPU time and wall time."""

    cpu: float
    wall: float


def timed(work: Callable[[], object]) -> Seconds:
    """Time a call, after a garbage collection."""
    gc.collect()
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    return Seconds(time.process_time() - cpu, time.perf_counter() - wall)


def time_vllm_benchmark(model: str, *, batch_size: int, max_tokens: int, iterations: int, folder: Path) -> float:
    """Median CPU time of a batch in s, by `vllm.benchmarks.latency`."""
    report = folder / "latency.json"
    script = folder / "latency.py"
    script.write_text(_LATENCY_SCRIPT)
    options = {
        "--model": model,
        "--dtype": "float32",
        "--input-len": INPUT_TOKENS,
        "--output-len": max_tokens,
        "--batch-size": batch_size,
        "--num-iters-warmup": 2,
        "--num-iters": iterations,
        "--kv-cache-memory-bytes": KV_CACHE_BYTES,
        "--max-num-seqs": batch_size,
        "--max-model-len": 1024,
        "--output-json": report,
    }
    subprocess.run(
        [
            sys.executable,
            script,
            *(str(part) for pair in options.items() for part in pair),
            "--enforce-eager",
            "--disable-detokenize",
        ],
        env={**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "ERROR"},
        check=True,
        stdout=subprocess.DEVNULL,
    )
    latencies: list[float] = json.loads(report.read_text())["latencies"]
    return statistics.median(latencies)


def compare(model: str, folder: Path, *, batch_size: int, pairs: int, iterations: int, max_tokens: int) -> None:
    """Time all three and print the ratios."""
    path = resolve_model(model, cache_dir=default_cache_dir()).path_or_id
    config = ExperimentConfig.model_validate(
        {
            "backend": "vllm",
            "model": model,
            "precision": "float32",
            "decoding": {"temperature": 1.0},
            "output": {"max_tokens": max_tokens},
            "vllm": settings(batch_size),
        }
    )
    job = RankJob(
        attempt_id="overhead",
        rank=0,
        world_size=1,
        config=config,
        model_path=path,
        prompts=("",) * batch_size,
        spool=str(folder / "spool"),
        devices=(),
    )
    shape = {"batch_size": batch_size, "max_tokens": max_tokens, "iterations": iterations}
    theirs = [time_vllm_benchmark(path, **shape, folder=folder)]
    backend = VllmBackend()
    backend.load(job)
    random = np.random.default_rng(0)
    prompts = [
        PreparedPrompt(index, tuple(random.integers(3, 10_000, INPUT_TOKENS).tolist())) for index in range(batch_size)
    ]
    writer = EvidenceWriter(folder / "spool", rank_name(0))
    ledger = OutputLedger(keep_ids=True)
    sinks = Sinks(writer.stream(StreamName.REQUESTS), writer.stream(StreamName.TOKENS), ledger)
    recorder = Recorder(PhaseName.MEASURE, sinks, Ticker(PhaseName.MEASURE, lambda _: None, time.monotonic_ns()))
    repetition = 0

    def recorded() -> None:
        nonlocal repetition
        requests = requests_of(prompts, repetition=repetition, first_id=repetition * batch_size, seed=0)
        repetition += 1
        backend.serve(RequestFeed(OnceArrivals(requests), recorder, lambda: writer.flush_older_than(5.0)), recorder)
        recorder.drain()

    sample = requests_of(prompts, repetition=0, first_id=0, seed=0)
    preload()
    recorded()
    if own_loop(backend, sample, max_tokens) != {index: list(token_ids) for index, token_ids in ledger.kept()}:
        raise SystemExit("the two loops give different tokens, so their times can't be compared.")
    gc.collect()
    gc.freeze()  # like a rank before its window
    ratios: list[float] = []
    of_cpu_time: list[float] = []
    ours: list[Seconds] = []
    for pair in range(pairs):
        works: dict[str, Callable[[], object]] = {
            "recorded": recorded,
            "own": lambda: own_loop(backend, sample, max_tokens),
        }
        order = ("recorded", "own") if pair % 2 else ("own", "recorded")
        seconds = {name: timed(works[name]) for name in order}
        ratios.append(seconds["own"].wall / seconds["recorded"].wall)
        of_cpu_time.append(seconds["own"].cpu / seconds["recorded"].cpu)
        ours.append(seconds["recorded"])
    writer.seal()
    low, middle, high = statistics.quantiles(ratios, n=4)
    cpu_s = statistics.median(one.cpu for one in ours)
    rate = batch_size * max_tokens / statistics.median(one.wall for one in ours)
    print(
        f"{model}, batch {batch_size}: recorded / engine's own loop {middle:.4f} of the output rate "
        f"(quartiles {low:.4f} to {high:.4f}, {pairs} pairs; by CPU time {statistics.median(of_cpu_time):.4f}), "
        f"{rate:.1f} tok/s recorded",
        flush=True,
    )
    backend.unload()
    theirs.append(time_vllm_benchmark(path, **shape, folder=folder))
    print(
        f"vLLM's own latency benchmark: {theirs[0]:.3f} s before and {theirs[1]:.3f} s after, LEM {cpu_s:.3f} s, "
        f"ratio {cpu_s / statistics.fmean(theirs):.3f}"
    )
    if middle < 0.97:
        raise SystemExit("recording costs more than 3 % of the output rate.")


def main() -> None:
    """Compare at the given batch size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="builtin:smollm2-135m-instruct")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--pairs", type=int, default=21)
    parser.add_argument("--iterations", type=int, default=7, help="iterations of vLLM's own benchmark")
    parser.add_argument("--max-tokens", type=int, default=32)
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        compare(
            options.model,
            Path(folder),
            batch_size=options.batch_size,
            pairs=options.pairs,
            iterations=options.iterations,
            max_tokens=options.max_tokens,
        )


if __name__ == "__main__":
    main()
