"""The worker's folders: one per process or subject, and no process imports the code of another one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import grimp
import pytest

import lem_worker

ROOMS = {"daemon", "rank", "sampler", "heartbeat", "process", "devices", "backends", "models"}
"""The folders of docs/architecture.md that hold Python code."""

MODULES_BETWEEN = {"__init__.py", "main.py", "server_api.py"}
"""The command line, and the HTTP client that the daemon and the heartbeat process share."""

DAEMON = ("daemon", "heartbeat", "main", "server_api")
SHARED = ("process", "devices", "models")


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


def engines(graph: grimp.ImportGraph) -> set[str]:
    """The packages of the backends, one per engine."""
    return {module for module in graph.find_children("lem_worker.backends") if graph.find_children(module)}


def test_the_daemon_reaches_no_code_of_a_rank_or_of_the_sampler(graph: grimp.ImportGraph) -> None:
    assert not reached(graph, *DAEMON) & modules(graph, "rank", "sampler")


def test_the_daemon_reaches_no_backend(graph: grimp.ImportGraph) -> None:
    inside = {module for engine in engines(graph) for module in {engine} | graph.find_descendants(engine)}
    assert len(inside) > 20
    assert not reached(graph, *DAEMON) & inside


def test_a_rank_and_the_sampler_reach_no_code_of_the_daemon(graph: grimp.ImportGraph) -> None:
    assert not reached(graph, "rank", "backends", "sampler", *SHARED) & modules(graph, *DAEMON)


def test_the_sampler_and_the_rank_reach_no_code_of_each_other(graph: grimp.ImportGraph) -> None:
    assert not reached(graph, "sampler") & modules(graph, "rank", "backends")
    assert not reached(graph, "rank", "backends") & modules(graph, "sampler")


def test_no_engines_backend_reaches_that_of_another(graph: grimp.ImportGraph) -> None:
    found = engines(graph)
    assert len(found) >= 4
    for engine in found:
        name = engine.removeprefix("lem_worker.")
        others = {module for other in found - {engine} for module in {other} | graph.find_descendants(other)}
        assert not reached(graph, name) & others


def test_shared_folders_reach_no_process(graph: grimp.ImportGraph) -> None:
    assert not reached(graph, *SHARED) & modules(graph, *DAEMON, "rank", "sampler", "backends")


def test_the_running_daemon_has_no_module_of_a_rank_or_engine() -> None:
    # Unlike the graph, this sees the packages' __init__ that an import runs on its way.
    code = "import sys, lem_worker.main, lem_worker.heartbeat.sender; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout.split()
    foreign = {"rank", "sampler", "pytorch", "vllm", "tensorrt", "simulated"}
    assert "lem_worker.daemon.daemon" in loaded
    assert not [name for name in loaded if name.startswith("lem_worker.") and foreign & set(name.split("."))]
