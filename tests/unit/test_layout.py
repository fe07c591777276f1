"""The worker's folders: one per process or subject, and no process imports the code of another one."""

from __future__ import annotations

from pathlib import Path

import grimp
import pytest

import lem_worker

ROOMS = {"daemon", "rank", "sampler", "heartbeat", "process", "devices", "backends", "models"}
"""The folders of docs/architecture.md that hold Python code."""

MODULES_BETWEEN = {"__init__.py", "main.py", "server_api.py"}
"""The command line, and the HTTP client that the daemon and the heartbeat process share."""

DAEMON = ("daemon", "heartbeat", "main", "server_api")
RANK = ("rank", "backends", "sampler", "process", "devices", "models")


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    """The imports of the worker, also those inside functions and under TYPE_CHECKING."""
    return grimp.build_graph("lem_worker")


def modules(graph: grimp.ImportGraph, *rooms: str) -> set[str]:
    """The modules of these rooms."""
    roots = {f"lem_worker.{room}" for room in rooms}
    return roots | {module for root in roots for module in graph.find_descendants(root)}


def reached(graph: grimp.ImportGraph, *rooms: str) -> set[str]:
    """The modules that these rooms import, directly or through others, without their own."""
    own = modules(graph, *rooms)
    return {module for one in own for module in graph.find_upstream_modules(one)} - own


def test_every_folder_is_a_room() -> None:
    folder = Path(lem_worker.__file__).parent
    entries = {path.name for path in folder.iterdir() if path.name != "__pycache__"}
    assert {name for name in entries if (folder / name).is_dir()} == ROOMS
    assert {name for name in entries if name.endswith(".py")} == MODULES_BETWEEN


def test_the_daemon_reaches_no_code_of_a_rank_or_of_the_sampler(graph: grimp.ImportGraph) -> None:
    assert not reached(graph, *DAEMON) & modules(graph, "rank", "sampler")


def test_the_daemon_reaches_no_backend(graph: grimp.ImportGraph) -> None:
    engines = {
        module for engine in graph.find_children("lem_worker.backends") for module in graph.find_descendants(engine)
    }
    assert not reached(graph, *DAEMON) & engines


def test_a_rank_and_the_sampler_reach_no_code_of_the_daemon(graph: grimp.ImportGraph) -> None:
    assert not reached(graph, *RANK) & modules(graph, *DAEMON)


def test_what_processes_share_reaches_no_process(graph: grimp.ImportGraph) -> None:
    assert not reached(graph, "process", "devices") & modules(graph, *DAEMON, "rank", "sampler", "backends", "models")
