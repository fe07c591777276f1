"""`python -m factories.rank_in_trouble JOB_FILE`: the real rank on the real vLLM engine, with the fault that the
experiment's `decoding.seed` names; with any other seed it has none."""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from lem_worker.process.protocol import RankJob
from lem_worker.rank import main as rank
from lem_worker.rank.recorder import Recorder

SEGMENTATION_FAULT, HANG, TAMPERED_OUTPUT = 9001, 9002, 9003


def _in_load_weights(action: Any) -> None:
    from vllm.model_executor.model_loader.default_loader import DefaultModelLoader

    DefaultModelLoader.load_weights = action


def _crash(*given: Any) -> None:
    sys.stderr.write("the engine's last words\n")
    os.kill(os.getpid(), signal.SIGSEGV)


def _hang(*given: Any) -> None:
    sys.stderr.write("the engine is reading its weights\n")
    threading.Event().wait()


def _tamper() -> None:
    finished = Recorder.finished

    def changed(recorder: Recorder, request_id: int, reason: Any, token_ids: Any, **more: Any) -> None:
        ids = [*token_ids[:-1], (token_ids[-1] + 1) % 1000] if request_id == 0 else token_ids
        finished(recorder, request_id, reason, ids, **more)

    Recorder.finished = changed  # type: ignore[method-assign]


if __name__ == "__main__":
    seed = RankJob.model_validate_json(Path(sys.argv[1]).read_bytes()).config.decoding.seed
    if seed == SEGMENTATION_FAULT:
        _in_load_weights(_crash)
    elif seed == HANG:
        _in_load_weights(_hang)
    elif seed == TAMPERED_OUTPUT:
        _tamper()
    sys.exit(rank.main(sys.argv[1:]))
