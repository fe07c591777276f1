"""`python -m factories.rank_losing_chunk JOB_FILE`: the real rank. If the model's name is `loses-<stream>`, the first
chunk of that stream of rank 0 is lost before it reaches the disk, and the completion marker lists it."""

from __future__ import annotations

import sys
from pathlib import Path

from lem_domain.evidence.streams import StreamName
from lem_worker.process import spool
from lem_worker.process.protocol import RankJob
from lem_worker.rank import main as rank


def lose_first_chunk(stream: StreamName) -> None:
    """Replace the spool's write by one that skips the chunk."""
    write = spool.write_durably

    def write_others(path: Path, body: bytes) -> None:
        if path.parent.parts[-2:] != ("rank-0", stream.value) or not path.name.startswith("00000000."):
            write(path, body)

    spool.write_durably = write_others


if __name__ == "__main__":
    model = RankJob.model_validate_json(Path(sys.argv[1]).read_bytes()).config.model.id
    if model.startswith("loses-"):
        lose_first_chunk(StreamName(model.removeprefix("loses-")))
    sys.exit(rank.main(sys.argv[1:]))
