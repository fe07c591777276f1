"""The environment snapshot of an attempt: facts about the host that are needed to judge or repeat a figure.

Secrets and user names are left out: no host name, no paths, no command line, and only the environment variables listed
here.
"""

from __future__ import annotations

import os
import platform
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from pydantic.types import JsonValue

from lem_domain.backends.registry import engine_distributions
from lem_domain.wire.workers import Device
from lem_worker.backends.installed import version_of

_PACKAGES = (
    "accelerate",
    "codecarbon",
    "numpy",
    "nvidia-ml-py",
    "pyarrow",
    "pydantic",
    "safetensors",
    "tokenizers",
    "transformers",
    "triton",
    *engine_distributions(),
)
_VARIABLES = (
    "CUDA_VISIBLE_DEVICES",
    "HF_HUB_OFFLINE",
    "KMP_AFFINITY",
    "MALLOC_ARENA_MAX",
    "MKL_NUM_THREADS",
    "OMP_NUM_THREADS",
    "OMP_PROC_BIND",
)
_DISTRIBUTION = "llm-energy-measurement"
_CLOCK_READINGS = 20
"""The scheduler may interrupt a reading; the narrowest of several brackets is the least disturbed one."""


def snapshot(devices: Sequence[Device], known: Sequence[Mapping[str, JsonValue]] = ()) -> dict[str, JsonValue]:
    """Collect the facts of this host, null where unreadable; `known` has the sampler's facts of each device."""
    by_uuid = {facts.get("uuid"): facts for facts in known}
    return {
        "clock": clock_pair(time.monotonic_ns, time.time_ns),
        "devices": [{**by_uuid.get(device.uuid, {}), **device.model_dump(mode="json")} for device in devices],
        "cpu": _cpu(),
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "numa_nodes": len(list(Path("/sys/devices/system/node").glob("node[0-9]*"))) or None,
        "kernel": f"{platform.system()} {platform.release()}",
        "container": _container(os.environ),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "packages": _versions(),
        "variables": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
        "lem": {"version": version_of(_DISTRIBUTION), "commit": _commit() or os.environ.get("LEM_COMMIT") or None},
    }


def clock_pair(monotonic_ns: Callable[[], int], utc_ns: Callable[[], int]) -> dict[str, JsonValue]:
    """Read both clocks at one moment; the uncertainty is half of the narrowest of several brackets."""
    readings = []
    for _ in range(_CLOCK_READINGS):
        before, utc, after = monotonic_ns(), utc_ns(), monotonic_ns()
        readings.append((after - before, before, utc))
    width, before, utc = min(readings)
    seconds, nanoseconds = divmod(utc, 1_000_000_000)
    moment = datetime.fromtimestamp(seconds, UTC)
    return {
        "monotonic_ns": before + width // 2,
        "utc": f"{moment:%Y-%m-%dT%H:%M:%S}.{nanoseconds:09d}Z",
        "uncertainty_ns": (width + 1) // 2,
    }


def _cpu() -> dict[str, JsonValue]:
    model, physical = cpu_facts(_text("/proc/cpuinfo") or "")
    return {
        "model": model,
        "architecture": platform.machine(),
        "logical_cores": os.cpu_count(),
        "physical_cores": physical,
        "usable_cores": len(os.sched_getaffinity(0)),
        "governor": _text("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "boost": _text("/sys/devices/system/cpu/cpufreq/boost"),
    }


def cpu_facts(cpuinfo: str) -> tuple[str | None, int | None]:
    """Model and number of physical cores from /proc/cpuinfo; None where the kernel does not list them (e.g. on ARM)."""
    model: str | None = None
    socket = ""
    cores = set()
    for line in cpuinfo.splitlines():
        name, _, value = (part.strip() for part in line.partition(":"))
        if name == "model name":
            model = model or value
        elif name == "physical id":
            socket = value
        elif name == "core id":
            cores.add((socket, value))
    return model, len(cores) or None


def _container(environment: Mapping[str, str]) -> dict[str, JsonValue]:
    runtime = None
    if "KUBERNETES_SERVICE_HOST" in environment:
        runtime = "kubernetes"
    elif Path("/.dockerenv").exists():
        runtime = "docker"
    elif Path("/run/.containerenv").exists():
        runtime = "podman"
    return {
        "runtime": runtime,
        # A container can't read the name of its image, so the command that starts it has to pass it.
        "image": environment.get("LEM_IMAGE") or None,
        "slurm": "SLURM_JOB_ID" in environment,
        "cpu_limit": _text("/sys/fs/cgroup/cpu.max"),
        "memory_limit": _text("/sys/fs/cgroup/memory.max"),
    }


def _versions() -> dict[str, JsonValue]:
    return {name: version for name in _PACKAGES if (version := version_of(name)) is not None}


def _commit() -> str | None:
    """Commit of the source tree; None for an installed package (an image sets LEM_COMMIT at build time)."""
    try:
        answer = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=5,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None if answer.returncode == 0 else None


def _text(path: str) -> str | None:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip() or None
    except OSError:
        return None
