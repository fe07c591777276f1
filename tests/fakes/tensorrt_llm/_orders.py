"""What a test orders of the fake: JSON in FAKE_TENSORRT_LLM, or `@` and a file of it that may change between runs. A
file in FAKE_TENSORRT_LLM_LOG gets what the fake was told.

{"fail": "out_of_memory" | "kill" | "hang" | "raise", "at": "load" | "generate", "after": n}   at the n-th request
{"lie": {"max_batch_size": 3}}      llm.args says so
{"without": ["cuda_graph_config"]}  another version, whose LLM does not know these arguments
{"drafting_model": "speculative_model"}   the name under which later copies keep what is still taken as ..._dir
{"import_error": true}
{"time_out": [9]}                   the ninth request ends for that reason with its first token
{"step_ms": 2.0}                    the time of one step
{"clock": "foreign"}                times of requests on another clock than CLOCK_MONOTONIC
"""

from __future__ import annotations

import json
import os
import signal
import threading
from pathlib import Path
from typing import Any


class OutOfMemory(RuntimeError):
    """As CUDA's allocator says it."""


def orders() -> dict[str, Any]:
    """What the test wants."""
    given = os.environ.get("FAKE_TENSORRT_LLM", "{}")
    if given.startswith("@"):
        given = Path(given[1:]).read_text(encoding="utf-8")
    return dict(json.loads(given))


def told(what: str, value: object) -> None:
    """Write down what arrived here, for the test to read."""
    path = os.environ.get("FAKE_TENSORRT_LLM_LOG")
    if path:
        with Path(path).open("a", encoding="utf-8") as log:
            log.write(json.dumps({"what": what, "value": value}, default=str) + "\n")


def fail_as_ordered(place: str, count: int = 0) -> None:
    """Fail, if that is what the test wants here."""
    wanted = orders()
    if wanted.get("at") != place or count < int(wanted.get("after", 0)):
        return
    match wanted.get("fail"):
        case "out_of_memory":
            raise OutOfMemory("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 79.10 GiB in total.")
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "hang":
            threading.Event().wait()
        case "raise":
            raise RuntimeError("[TensorRT-LLM][ERROR] Assertion failed: the fake was told to fail")
