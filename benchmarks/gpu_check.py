"""Validates measurements on this machine's GPU: the section "On a real GPU" of docs/validation.md.

    python benchmarks/gpu_check.py [--cycles 5] [--seconds 20] [--write docs/validation.md]

Starts a server and a PyTorch worker and measures a Llama of one billion parameters with random weights at two batch
sizes. It reports the counter against the integral of power, the spread over the cycles, the steady state, both
baselines and the sampler's own share; then, for one more run that is observed from outside, the update periods of
counter and power and the mean power against nvidia-smi's readings of the same seconds; what sampling at 20 and 100 Hz
costs in processor time and power; periods, windows and scopes of the sensor's readings and the limits that they must
keep (gpu_sensor.py); and last, the cost of recording against a bare decode loop.

Without a GPU it says what is missing. Over a simulated NVML it runs whole, and writes nothing to a page.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, LlamaConfig

import gpu_sensor as sensor  # type: ignore[import-not-found]  # in this folder
import gpu_watch as watch  # type: ignore[import-not-found]  # in this folder
from lem_client import Client
from lem_domain.config.campaign import CampaignSpec
from lem_domain.results.run import RunResult
from lem_domain.states import RunState
from lem_domain.wire.runs import RunView
from lem_domain.wire.workers import Device, DeviceKind
from lem_worker.devices.cuda_visible import visible_gpus
from lem_worker.devices.nvml_session import Gpu, MigInstance
from lem_worker.models import default_cache_dir, resolve_model
from overhead import compare  # type: ignore[import-not-found]  # in this folder
from validation_page import with_report  # type: ignore[import-not-found]  # in this folder

BIN = Path(sys.executable).parent
LOAD: Callable[[], sensor.Load] = sensor.TorchLoad
WORKER: tuple[str, ...] = (str(BIN / "lem-worker"),)
BATCH_SIZES = (1, 16)
INTERVALS_MS = {"20 Hz": 50, "100 Hz": 10}
SHAPE: dict[str, Any] = {
    "vocab_size": 128_256,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
    "dtype": "bfloat16",
}
"""Llama 3.2 1B's published dimensions."""


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cycles", type=int, default=5)
    parser.add_argument(
        "--seconds", type=float, default=20, help="shortest window; also the shortest baseline, but at most 10 s"
    )
    parser.add_argument("--pairs", type=int, default=15, help="number of pairs of a recorded and a bare decode loop")
    parser.add_argument("--write", type=Path, help="add the report to this page")
    options = parser.parse_args()
    gpus = visible_gpus(os.environ)
    missing = [] if gpus.devices else [f"a GPU: {'; '.join(gpus.remarks) or 'NVML lists none'}"]
    if (why := cuda_problem()) is not None:
        missing.append(f"CUDA in PyTorch: {why}")
    if missing:
        sys.exit(
            "\n".join(["This needs a machine with a GPU. What is missing here:", *(f"- {one}" for one in missing)])
        )
    gpu = gpus.devices[0]
    folder = Path(tempfile.mkdtemp(prefix="lem-gpu-check-"))
    folder.chmod(0o755)  # started by root, PostgreSQL runs as another user, which needs access
    model = shape_only(folder / "llama")
    report: dict[str, object] = {"gpu": gpu.name, **driver(gpu.uuid), "experiments": {}}
    with running(folder, gpu.uuid) as client:
        runs = run_campaign(client, campaign(model, options.seconds, BATCH_SIZES, options.cycles), folder)
        names = dict.fromkeys(run.display_name for run in runs)
        report["experiments"] = {
            name: figures([client.aggregate(run.id) for run in runs if run.display_name == name]) for name in names
        }
        report["watched"] = observed_run(
            client, campaign(model, options.seconds, BATCH_SIZES[-1:], 1), gpu.uuid, folder
        )
        report["sampling"] = sampling_costs(client, model, options.seconds, folder)
    # After the worker: a process with CUDA would be a foreign one to it.
    os.environ["CUDA_VISIBLE_DEVICES"] = gpu.uuid
    report["sensor"] = sensor.describe(gpu.uuid, gpu.name, LOAD())
    report["rate_recorded_over_bare"] = overhead(model, gpu, folder, options.pairs)
    text = json.dumps(report, indent=2)
    print(text)
    if options.write is not None and not torch.cuda.is_available():
        print("Nothing is written to a page: PyTorch has no GPU, so NVML shows a simulated one.", file=sys.stderr)
    elif options.write is not None:
        page = options.write.read_text() if options.write.exists() else ""
        options.write.write_text(with_report(page, f"{gpu.name}, {time.strftime('%Y-%m-%d')}", text))
    shutil.rmtree(folder, ignore_errors=True)


def cuda_problem() -> str | None:
    """Return why PyTorch can't compute on a GPU; None if it can."""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without it; install one that is (https://pytorch.org)."
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} finds no GPU; compare the driver's version with CUDA {torch.version.cuda}."
    return None


def shape_only(folder: Path) -> Path:
    """Write a model folder with a configuration and a tokenizer but no weights."""
    source = resolve_model("builtin:tiny-llama", cache_dir=default_cache_dir()).path_or_id
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    LlamaConfig(**SHAPE).save_pretrained(folder)
    return folder


def driver(uuid: str) -> dict[str, str | None]:
    """The driver's version and the GPU's power limit, as nvidia-smi formats them; null without nvidia-smi."""
    try:
        said = watch.smi(f"--id={uuid}", "--query-gpu=driver_version,power.limit", "--format=csv,noheader")
    except OSError:
        return {"driver": None, "power_limit": None}
    version, _, limit = said.stdout.strip().partition(", ")
    return {"driver": version or None, "power_limit": limit or None}


def campaign(
    model: Path, seconds: float, batch_sizes: Sequence[int], cycles: int, interval_ms: int = 50
) -> CampaignSpec:
    """One experiment for each batch size, interleaved."""
    return CampaignSpec.model_validate(
        {
            "name": "gpu check",
            "experiment": {
                "backend": "pytorch",
                "model": {"id": str(model), "weights": "dummy"},
                "precision": "bfloat16",
                "prompts": {"sample_size": 32},
                "output": {"max_tokens": 128},
                "window": {"min_duration_s": seconds, "steady_min_s": seconds / 2},
                "baseline": {"min_s": min(10.0, seconds), "max_s": min(60.0, 3 * seconds)},
                "energy": {"sources": ["nvml"], "required": True, "interval_ms": interval_ms},
            },
            "sweep": {"pytorch.batch_size": list(batch_sizes)},
            "execution": {"cycles": cycles},
        }
    )


@contextmanager
def running(folder: Path, uuid: str) -> Iterator[Client]:
    """Run a server and a worker with only this GPU."""
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
            [*WORKER, "run", "--backend", "pytorch", "--server", url, "--state-dir", str(folder / "worker")],
            env={**environment, "CUDA_VISIBLE_DEVICES": uuid},
            stderr=log,
        )
    try:
        with Client(url, token_file=folder / "data" / "owner.token") as client:
            yield client
    finally:
        for process in (worker, server):
            process.terminate()
            process.wait()


def run_campaign(client: Client, spec: CampaignSpec, folder: Path) -> list[RunView]:
    """Run the campaign and return its runs; exit with the reasons if one is not completed."""
    submitted = client.submit(spec)
    for _ in client.follow_campaign(submitted.id):
        pass
    runs = list(client.runs(campaign_id=submitted.id))
    failed = [
        f"{run.display_name}, cycle {run.cycle}: {run.message}" for run in runs if run.state is not RunState.COMPLETED
    ]
    if failed or not runs:
        sys.exit("\n".join([*(failed or ["no run was measured"]), f"logs are in {folder}"]))
    return runs


def figures(results: Sequence[RunResult]) -> dict[str, object]:
    """Summarise the cycles of one experiment."""
    per_token = [one.efficiency.energy_per_output_token_j.value or float("nan") for one in results]
    devices = [one.energy.devices[0] for one in results]
    deviations = [
        device.integrated.joules / device.energy.joules - 1
        for device in devices
        if device.integrated is not None and device.integrated.joules and device.energy.joules
    ]
    baselines = {
        one.context: (one.mean_power_w.value, one.bound_w, one.stationary) for one in results[0].energy.baselines
    }
    return {
        "cycles": len(results),
        "energy_per_output_token_j": statistics.fmean(per_token),
        "cv_over_cycles": statistics.stdev(per_token) / statistics.fmean(per_token) if len(per_token) > 1 else None,
        "output_rate_tok_s": statistics.fmean(one.speed.output_rate_tok_s.value or float("nan") for one in results),
        "mean_power_w": statistics.fmean(one.energy.mean_power_w.value or float("nan") for one in results),
        "method": sorted({str(device.energy.method) for device in devices}),
        "integral_over_counter_minus_1": statistics.fmean(deviations) if deviations else None,
        "counter_period_ms": devices[0].counter_period_ms.value,
        "sampling_period_ms": devices[0].sampling_period_ms.value,
        "bound_share": statistics.fmean(
            (one.energy.bound_j or float("nan")) / (one.energy.joules or float("nan")) for one in devices
        ),
        "baselines_w_bound_steady": baselines,
        "steady": steady(results),
        "sampler_cpu_share": results[0].telemetry.sampler.cpu_share.value if results[0].telemetry.sampler else None,
        "verdicts": sorted({one.verdict for one in results}),
        "findings": sorted({finding.code.value for one in results for finding in one.findings}),
    }


def steady(results: Sequence[RunResult]) -> dict[str, object]:
    """The steady states of the cycles of one experiment: their means, or why one has none."""
    found = [one.steady.energy_per_output_token_j for one in results]
    values = [figure.value for figure in found if figure.value is not None]
    whole = len(values) == len(found)
    return {
        "energy_per_output_token_j": statistics.fmean(values) if whole else None,
        "over_whole_window": statistics.fmean(
            value / (one.efficiency.energy_per_output_token_j.value or float("nan"))
            for value, one in zip(values, results, strict=True)
        )
        if whole
        else None,
        "shortest_s": min((one.steady.duration_s.value or 0.0 for one in results), default=None),
        "reasons": sorted({figure.reason for figure in found if figure.reason}),
    }


def sampling_costs(client: Client, model: Path, seconds: float, folder: Path) -> dict[str, object]:
    """What sampling at each rate takes of a core, and the powers that were read with it."""
    found: dict[str, object] = {}
    for name, interval_ms in INTERVALS_MS.items():
        [run] = run_campaign(client, campaign(model, seconds, BATCH_SIZES[-1:], 1, interval_ms), folder)
        result = client.aggregate(run.id)
        [attempt] = client.attempts(run.id)
        environment = attempt.environment or {}
        devices = environment["devices"]
        assert isinstance(devices, list) and isinstance(devices[0], dict)
        sampler = result.telemetry.sampler
        found[name] = {
            "cpu_share": sampler.cpu_share.value if sampler else None,
            "baselines_w": {one.context: one.mean_power_w.value for one in result.energy.baselines},
            "mean_power_w": result.energy.mean_power_w.value,
            "energy_per_output_token_j": result.efficiency.energy_per_output_token_j.value,
        }
        # Measured by the worker at its start, at 20 Hz.
        found["at_rest"] = devices[0].get("idle_power")
    return found


def observed_run(client: Client, spec: CampaignSpec, uuid: str, folder: Path) -> dict[str, object]:
    """One run that nvidia-smi and an NVML poll observe: their readings within its window, on its clock."""
    polled = watch.NvmlPoll()
    field = watch.power_field() if shutil.which("nvidia-smi") else None
    by_smi: list[watch.EnergyEstimate] = []
    with polled.of(uuid):
        if field is None:
            [run] = run_campaign(client, spec, folder)
        else:
            with watch.poll_with_smi(uuid, field, folder / "smi.csv") as readings:
                [run] = run_campaign(client, spec, folder)
                by_smi = readings()
    result = client.aggregate(run.id)
    [attempt] = client.attempts(run.id)
    window = result.window
    begin, end = window.begin_ns / 1e9, window.end_ns / 1e9
    ahead = utc_minus_monotonic_s(attempt.environment or {})
    energy_j, power_w = (watch.within(readings, begin, end) for readings in (polled.energy_j, polled.power_w))
    return {
        "mean_power_w": result.energy.mean_power_w.value,
        "nvidia_smi_field": field,
        "nvidia_smi_mean_power_w": watch.mean(watch.within(by_smi, begin + ahead, end + ahead)),
        "polled_mean_power_w": watch.mean(power_w),
        "polled": polled.error or f"{len(energy_j)} times in {window.duration_s:.1f} s",
        "counter_update_ms": watch.update_period_ms(energy_j),
        "power_update_ms": watch.update_period_ms(power_w),
    }


def utc_minus_monotonic_s(environment: Mapping[str, object]) -> float:
    """UTC minus CLOCK_MONOTONIC in s, from the pair of clock readings in the attempt's environment."""
    clock = environment["clock"]
    assert isinstance(clock, dict)
    # fromisoformat accepts at most microseconds.
    moment = datetime.fromisoformat(str(clock["utc"])[:26] + "+00:00")
    return moment.timestamp() - int(clock["monotonic_ns"]) / 1e9


def overhead(model: Path, gpu: Gpu | MigInstance, folder: Path, pairs: int) -> dict[str, object]:
    """Median and quartiles of the ratio of output rates, recorded over bare, by batch size; in this process.

    In 16 bits, a mask may select another kernel and so change the tokens. `same_tokens` reports it; the work is equal.
    """
    device = Device(uuid=gpu.uuid, kind=DeviceKind.GPU, name=gpu.name)
    found: dict[str, object] = {}
    for batch_size in BATCH_SIZES:
        found_ratios = compare(
            {"id": str(model), "weights": "dummy"},
            folder,
            batch_size=batch_size,
            pairs=pairs,
            max_tokens=128,
            devices=(device,),
            precision="bfloat16",
        )
        found[f"batch {batch_size}"] = {
            "median": found_ratios.ratios[1],
            "quartiles": (found_ratios.ratios[0], found_ratios.ratios[2]),
            "tok_s": found_ratios.tok_s,
            "same_tokens": found_ratios.same_tokens,
        }
    return found


if __name__ == "__main__":
    main()
