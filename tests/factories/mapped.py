"""What a live process has in its memory, as the kernel tells it: whoever imported an engine or opened CUDA has its
libraries mapped."""

from __future__ import annotations

from pathlib import Path

import psutil

ENGINE_LIBRARIES = ("libtorch", "libcuda.so", "libcudart", "libnvinfer", "/vllm/", "/tensorrt_llm/")
"""libnvidia-ml, which reads power, is none of them: it makes no CUDA context."""


def engine_libraries(pid: int) -> set[str]:
    """Those of the names above that are part of a mapped file's path."""
    maps = Path(f"/proc/{pid}/maps").read_text()
    return {name for name in ENGINE_LIBRARIES if name in maps}


def by_role(daemon: int) -> dict[str, int]:
    """The pids of a worker's processes: daemon, beat, sampler, rank."""
    found = {"daemon": daemon}
    for child in psutil.Process(daemon).children(recursive=True):
        line = " ".join(child.cmdline())
        for role, module in (
            ("beat", "lem_worker.heartbeat.sender"),
            ("sampler", "lem_worker.sampler.main"),
            ("rank", "lem_worker.rank.main"),
        ):
            if module in line:
                found[role] = child.pid
    return found
