"""What a start of the worker does with what an earlier one left: kill its processes, finish what is whole.

The earlier boot's lease still stands until the new boot registers, so finished evidence is completed under the earlier
boot's name, before that. What is not whole is dropped: the server gives the run to somebody as a new attempt.

What is marked as sent is not sent again, and the server need not be asked what it holds: a chunk that it took just
before the worker ended is sent once more, which changes nothing, and what it lacks it names when it is told the
manifest.
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
    """Kill every process that the attempts of these folders left behind."""
    killed = await kill_leftovers([folder.name for folder in leftovers])
    if killed:
        logger.warning("killed %d processes that earlier attempts left", killed)


async def recover(leftovers: list[Path], connect: Callable[[UUID], ServerApi]) -> None:
    """Complete whole attempts under the boot that made them; forget the others.

    Raises:
        NotAllowed: the server does not accept this worker; everything stays in the spool.
    """
    for folder in leftovers:
        spool.remove_partial_files(folder)
        assignment = _assignment(folder)
        if assignment is not None and spool.is_complete(folder, assignment.processes):
            await _complete(folder, assignment, connect(assignment.boot_id))
        else:
            logger.warning("%s was not finished when the worker ended; it will be measured again", folder.name)
            spool.remove_attempt(folder)


async def _complete(folder: Path, assignment: SpooledAssignment, api: ServerApi) -> None:
    try:
        await Uploader(api, assignment.attempt_id, folder, send_logs=False).complete(assignment.processes)
    except NotAllowed:
        raise
    except LeaseLost as error:
        logger.warning("%s was measured, but the server does not want it any more: %s", assignment.attempt_id, error)
        spool.remove_attempt(folder)
    except ServerRefused as error:
        kept = spool.quarantine(folder)
        logger.error("the server refused the evidence of %s, it is kept in %s: %s", folder.name, kept, error)
    else:
        logger.info("%s was measured before the worker ended; completed it from the spool", assignment.attempt_id)
        spool.remove_attempt(folder)
    finally:
        await api.aclose()


def _assignment(folder: Path) -> SpooledAssignment | None:
    try:
        return SpooledAssignment.model_validate_json((folder / "assignment.json").read_bytes())
    except (OSError, ValueError):
        return None
