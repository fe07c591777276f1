"""Recovery at the start of a worker: end the processes of earlier attempts and complete finished ones.

The lease of the earlier boot is valid until the new boot registers. Finished evidence is therefore completed under the
earlier boot before that; an unfinished attempt is dropped, and the server assigns its run again.

Chunks marked as sent are not sent again. The server is not asked for its chunks either: sending a chunk twice changes
nothing, and the answer to the manifest lists the missing ones.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from uuid import UUID

from lem_worker.daemon.attempt import SpooledAssignment
from lem_worker.daemon.upload import Uploader
from lem_worker.process import spool
from lem_worker.process.children import kill_leftovers
from lem_worker.server_api import LeaseLost, NotAllowed, ServerApi, ServerRefused

logger = logging.getLogger(__name__)


async def clean_up(leftovers: list[Path]) -> None:
    """Kill every process that the attempts of these folders left."""
    killed = await kill_leftovers([folder.name for folder in leftovers])
    if killed:
        logger.warning("killed %d processes of earlier attempts", killed)


async def recover(leftovers: list[Path], connect: Callable[[UUID], ServerApi]) -> None:
    """Complete finished attempts under the boot that measured them; remove the others.

    Raises:
        NotAllowed: the server does not accept this worker; the spool is kept.
    """
    for folder in leftovers:
        spool.remove_partial_files(folder)
        assignment = _assignment(folder)
        if assignment is not None and spool.is_complete(folder, assignment.processes):
            await _complete(folder, assignment, connect(assignment.boot_id))
        else:
            logger.warning("%s was not finished when the worker ended; its run will be measured again", folder.name)
            spool.remove_attempt(folder)


async def _complete(folder: Path, assignment: SpooledAssignment, api: ServerApi) -> None:
    try:
        # The earlier boot may have sent a part of the logs, and its position in them is not on disk.
        await Uploader(api, assignment.attempt_id, folder, send_logs=False).complete(assignment.processes)
    except NotAllowed:
        raise
    except LeaseLost as error:
        logger.warning("%s was measured, but its lease is lost: %s", assignment.attempt_id, error)
        spool.remove_attempt(folder)
    except ServerRefused as error:
        kept = spool.move_to_refused(folder)
        logger.error("the server refused the evidence of %s; it is kept in %s: %s", folder.name, kept, error)
    else:
        logger.info("%s was finished before the worker ended; completed it from the spool", assignment.attempt_id)
        spool.remove_attempt(folder)
    finally:
        await api.aclose()


def _assignment(folder: Path) -> SpooledAssignment | None:
    try:
        return SpooledAssignment.model_validate_json((folder / "assignment.json").read_bytes())
    except (OSError, ValueError):
        return None
