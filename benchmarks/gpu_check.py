"""Whether measurements on a real GPU can be believed: the checks of docs/validation.md, on this machine's GPU.

    python benchmarks/gpu_check.py [--cycles 5] [--write docs/validation.md]

Starts a server and a PyTorch worker of its own, measures a Llama of one billion parameters with random weights at two
batch sizes, and reports: the counter against the integral, the spread over cycles, the observed update periods, both
baselines, and the mean power against what nvidia-smi says at the same time.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from transformers import AutoTokenizer, LlamaConfig

from lem_client import Client
from lem_domain.config.campaign import CampaignSpec
from lem_domain.results import RunResult
from lem_worker.models import default_cache_dir, resolve_model
from lem_worker.nvml.visible import visible_gpus

BIN = Path(sys.executable).parent
BATCH_SIZES = (1, 16)
SMI_FIELDS = "timestamp,uuid,power.draw.instant"


def shape_only(folder: Path) -> Path:
    """A model folder with a shape and a tokenizer but no weights: Llama 3.2 1B's published dimensions."""
    source = resolve_model("builtin:tiny-llama", cache_dir=default_cache_dir()).path_or_id
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    LlamaConfig(
        vocab_size=128_256,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=64,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        dtype="bfloat16",
    ).save_pretrained(folder)
    return folder


def campaign(model: Path, cycles: int) -> CampaignSpec:
    """Two batch sizes, interleaved."""
    return CampaignSpec.model_validate(
        {
            "name": "gpu check",
            "experiment": {
                "backend": "pytorch",
                "model": {"id": str(model), "weights": "dummy"},
                "precision": "bfloat16",
                "prompts": {"sample_size": 32},
                "output": {"max_tokens": 128},
                "window": {"min_duration_s": 20},
                "energy": {"sources": ["nvml"], "required": True},
            },
            "sweep": {"pytorch.batch_size": list(BATCH_SIZES)},
            "execution": {"cycles": cycles},
        }
    )


@contextmanager
def running(folder: Path) -> Iterator[Client]:
    """A server and a worker of this machine's GPUs."""
    environment = {**os.environ, "LEM_DATA_DIR": str(folder / "data")}
    with (folder / "server.log").open("wb") as log:
        server = subprocess.Popen(
            [BIN / "lem-server", "serve", "--port", "0"], env=environment, stdout=subprocess.PIPE, stderr=log, text=True
        )
    assert server.stdout is not None
    line = server.stdout.readline()
    if "http://" not in line:
        sys.exit((folder / "server.log").read_text())
    url = "http://" + line.split("http://")[1].split()[0]
    with (folder / "worker.log").open("wb") as log:
        worker = subprocess.Popen(
            [BIN / "lem-worker", "run", "--backend", "pytorch", "--server", url], env=environment, stderr=log
        )
    try:
        with Client(url, token_file=folder / "data" / "owner.token") as client:
            yield client
    finally:
        for process in (worker, server):
            process.terminate()
            process.wait()


@contextmanager
def watched_by_smi(uuid: str) -> Iterator[list[tuple[float, float]]]:
    """(UTC seconds, W) of the driver's own tool, five times a second."""
    command = [
        "nvidia-smi",
        f"--query-gpu={SMI_FIELDS}",
        f"--id={uuid}",
        "--format=csv,noheader,nounits",
        "-lms",
        "200",
    ]
    readings: list[tuple[float, float]] = []
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "TZ": "UTC"})
    try:
        yield readings
    finally:
        process.terminate()
        said, _ = process.communicate()
        for stamp, _, watts in csv.reader(io.StringIO(said), skipinitialspace=True):
            seconds = time.mktime(time.strptime(stamp.split(".")[0], "%Y/%m/%d %H:%M:%S")) - time.timezone
            readings.append((seconds + float("0." + stamp.split(".")[1]), float(watts)))


def figures(results: Sequence[RunResult]) -> dict[str, object]:
    """What the cycles of one experiment say."""
    per_token = [r.efficiency.energy_per_output_token_j.value or float("nan") for r in results]
    devices = [r.energy.devices[0] for r in results]
    apart = [
        device.integrated.joules / device.energy.joules - 1
        for device in devices
        if device.integrated is not None and device.integrated.joules and device.energy.joules
    ]
    baselines = {one.context: one.mean_power_w.value for one in results[0].energy.baselines}
    return {
        "energy_per_output_token_j": statistics.fmean(per_token),
        "cv_over_cycles": statistics.stdev(per_token) / statistics.fmean(per_token) if len(per_token) > 1 else None,
        "output_rate_tok_s": statistics.fmean(r.speed.output_rate_tok_s.value or float("nan") for r in results),
        "mean_power_w": statistics.fmean(r.energy.mean_power_w.value or float("nan") for r in results),
        "integral_over_counter_minus_1": statistics.fmean(apart) if apart else None,
        "counter_period_ms": devices[0].counter_period_ms.value,
        "sampling_period_ms": devices[0].sampling_period_ms.value,
        "bound_share": statistics.fmean(
            (d.energy.bound_j or float("nan")) / (d.energy.joules or float("nan")) for d in devices
        ),
        "baselines_w": baselines,
        "sampler_cpu_share": results[0].telemetry.sampler.cpu_share.value if results[0].telemetry.sampler else None,
        "verdicts": sorted({r.verdict for r in results}),
        "findings": sorted({finding.code.value for r in results for finding in r.findings}),
    }


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cycles", type=int, default=5)
    parser.add_argument("--write", type=Path, help="append the report to this file")
    options = parser.parse_args()
    gpus = visible_gpus(os.environ)
    if not gpus.devices:
        sys.exit(f"there is no GPU here ({'; '.join(gpus.remarks) or 'NVML lists none'}); run this where there is one.")
    folder = Path(tempfile.mkdtemp(prefix="lem-gpu-check-"))
    folder.chmod(0o755)
    with running(folder) as client, watched_by_smi(gpus.devices[0].uuid) as smi:
        submitted = client.submit(campaign(shape_only(folder / "llama-1b"), options.cycles))
        for _ in client.follow_campaign(submitted.id):
            pass
        runs = list(client.runs(campaign_id=submitted.id))
        failed = [f"{run.display_name}, cycle {run.cycle}: {run.message}" for run in runs if run.state != "completed"]
        if failed:
            sys.exit("\n".join([*failed, f"logs are in {folder}"]))
        results = {run.id: client.aggregate(run.id) for run in runs}
        by_experiment: dict[str, list[RunResult]] = {}
        starts: dict[str, list[tuple[float, float]]] = {}
        for run in runs:
            by_experiment.setdefault(run.display_name, []).append(results[run.id])
            (attempt,) = client.attempts(run.id)
            assert attempt.started_at is not None and attempt.ended_at is not None
            starts.setdefault(run.display_name, []).append(
                (attempt.started_at.timestamp(), results[run.id].window.duration_s)
            )
    report = {
        "machine": platform.node(),
        "gpu": gpus.devices[0].name,
        "driver": subprocess.run(
            ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()[0],
        "experiments": {},
    }
    for name, found in by_experiment.items():
        seen = [
            watts
            for begin, duration_s in starts[name]
            for at, watts in smi
            if begin + 1 < at < begin + duration_s - 1  # its clock is read by another program
        ]
        report["experiments"][name] = {  # type: ignore[index]
            **figures(found),
            "nvidia_smi_mean_power_w": statistics.fmean(seen) if seen else None,
        }
    text = json.dumps(report, indent=2)
    print(text)
    if options.write is not None:
        with options.write.open("a") as file:
            file.write(f"\n## {report['gpu']}, {time.strftime('%Y-%m-%d')}\n\n```json\n{text}\n```\n")
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
