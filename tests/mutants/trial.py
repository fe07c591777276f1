"""Runs the tests that reach a changed line, each mutant in a fork of one collected pytest session.

The tests and the server are imported once. A fork replaces the code of the changed function, so that a mutant costs
little more than the first test that notices it. What runs at import (constants, decorators, class bodies) can't be
replaced there; such a mutant gets a fork without the server, in which everything is imported again over the change.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import hashlib
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import pickle
import signal
import sys
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import NamedTuple

import pytest

from mutants.database import one_cluster
from mutants.mutations import ROOT, Mutant, lines_of_statement
from mutants.targets import Suite

CACHE = ROOT / "build" / "mutants"
SPAWNED = "LEM_MUTANT"
"""Where a spawned subprocess of a test finds the changed module; `spawned/sitecustomize.py` reads it."""
AT_MOST = 40
"""So many tests have to notice a mutant."""
LIMIT_S = 60.0
LIMIT_FACTOR = 20
"""A mutant that loops forever is ended after this time, far more than its tests take.

The load of the machine decides nothing."""
BROKEN = 99
"""The exit code of a fork in which the program itself failed, not a test."""
OPTIONS = ("-x", "-qq", "-s", "--no-header", "--tb=short", "-p", "no:cacheprovider")
SOURCES = ("domain", "server", "tests", "tools", "client", "worker")


class Verdict(StrEnum):
    """What became of a mutant."""

    KILLED = "killed"
    SURVIVED = "survived"
    ENDLESS = "endless"
    UNREACHED = "unreached"


@dataclass(frozen=True)
class Reach:
    """Which tests reach which lines of the mutated modules, and how long they take."""

    lines: dict[str, dict[int, list[str]]]
    seconds: dict[str, float]
    about: dict[str, tuple[str, ...]]
    """See `Suite.about`."""

    def tests_of(self, mutant: Mutant) -> list[str]:
        """Return the tests that have to notice the mutant: those that reach its line and are most about its function.

        A test is about a function if it reaches many of its lines and few others. Random traces that pass through
        everything would cost minutes for each survivor, and what they alone notice is no statement about a value.
        """
        by_line = self.lines.get(mutant.module, {})
        statement, function = lines_of_statement(mutant.module, mutant.line)
        near = Counter(test for line in function or by_line for test in by_line.get(line, ()))
        reaching = {test for line in statement for test in by_line.get(line, ())} if function else set(near)
        first = [file for part, files in self.about.items() if mutant.module.startswith(part) for file in files]

        def order(test: str) -> tuple[bool, int, int, str]:
            return test.partition("::")[0] not in first, -near[test], self.breadth[test], test

        return sorted(reaching, key=order)[:AT_MOST]

    @functools.cached_property
    def breadth(self) -> Counter[str]:
        """How many lines each test reaches."""
        return Counter(test for by_line in self.lines.values() for tests in by_line.values() for test in tests)


def decide(suite: Suite, mutants: Sequence[Mutant], jobs: int) -> Generator[tuple[Mutant, Verdict]]:
    """Yield the verdict on every mutant, in the order in which they are reached.

    Raises:
        RuntimeError: the suite's tests fail without any change.
    """
    with one_cluster() if suite.database else contextlib.nullcontext():
        reading, writing = os.pipe()
        pid = _fork()
        if pid == 0:
            os.close(reading)
            _leave(lambda: _session(suite, mutants, jobs, writing))
        os.close(writing)
        at_import: list[Mutant] = []
        reach: Reach | None = None
        imports: list[str] = []
        with _ending(pid), os.fdopen(reading, "rb") as answers, contextlib.suppress(EOFError):
            reach, imports = pickle.load(answers)
            while True:
                mutant, verdict = pickle.load(answers)
                if verdict is None:
                    at_import.append(mutant)
                else:
                    yield mutant, verdict
        _, status = os.waitpid(pid, 0)
        if os.waitstatus_to_exitcode(status) != 0 or reach is None:
            raise RuntimeError(f"the tests of {suite.name} fail without any change; repair them first.")
        if at_import:
            _preload(imports)
            yield from _over(at_import, reach, jobs, _from_the_start)


# --- One collected session -------------------------------------------------------------------------------------


def _session(suite: Suite, mutants: Sequence[Mutant], jobs: int, writing: int) -> int:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends its forks on its way out
    plugin = _Collected(suite, mutants, jobs, writing)
    code = int(pytest.main([*OPTIONS, *suite.tests], plugins=[plugin]))
    return 0 if plugin.finished else code or 1


class _Collected:
    """Takes the place of the run of all tests, once they are collected."""

    def __init__(self, suite: Suite, mutants: Sequence[Mutant], jobs: int, writing: int) -> None:
        self.finished = False
        self._suite, self._mutants, self._jobs = suite, mutants, jobs
        self._writing = writing
        self._running = False

    def pytest_sessionstart(self) -> None:
        _waste_no_time_on_small_counterexamples()

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = [item for item in items if not _is_unused(item, self._suite.unused)]

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool | None:
        if self._running:
            return None  # pytest's own loop
        reach = self._reach(session)
        with os.fdopen(self._writing, "wb") as answers:

            def answer(what: object) -> None:
                pickle.dump(what, answers)
                answers.flush()

            imports = [name for name in list(sys.modules) if not _is_ours(name)]
            answer((reach, imports))
            functions = _functions_in_memory(self._suite.modules)
            changes: Changes = {}
            for mutant in self._mutants:
                with contextlib.suppress(SyntaxError):  # no Python, so no mutant
                    changes[mutant] = changed_functions(mutant, functions)
            here = [mutant for mutant, change in changes.items() if change is not None]
            for mutant in changes:
                if changes[mutant] is None:
                    answer((mutant, None))
            items = {item.nodeid: item for item in session.items}
            # In this process: what the first test of a session loads and fills is then there for every fork.
            if here and self._loop(session, [items[test] for test in reach.tests_of(here[0])]) != 0:
                return True
            gc.collect()
            gc.freeze()  # a collection in a fork would copy every page
            for verdict in _over(here, reach, self._jobs, self._replaced(session, items, changes)):
                answer(verdict)
        self.finished = True
        return True

    def _replaced(self, session: pytest.Session, items: dict[str, pytest.Item], changes: Changes) -> Trial:
        def run(mutant: Mutant, tests: Sequence[str]) -> int:
            _prepare_spawned(mutant.module, mutant.source())
            for function, code in changes[mutant] or ():
                function.__code__ = code
            return self._loop(session, [items[test] for test in tests])

        return run

    def _loop(self, session: pytest.Session, items: list[pytest.Item]) -> int:
        self._running = True
        session.items[:] = items
        try:
            session.config.hook.pytest_runtestloop(session=session)
        except (session.Failed, session.Interrupted):
            return 1
        finally:
            self._running = False
        return 1 if session.testsfailed else 0

    def _reach(self, session: pytest.Session) -> Reach:
        """Run the tests once with coverage, in a fork; the result is kept until a source file changes."""
        digest = hashlib.sha256(repr(self._suite._replace(about={})).encode())
        for folder in SOURCES:
            for path in sorted((ROOT / folder).rglob("*.py")):
                if Path(__file__).parent not in path.parents:
                    digest.update(path.read_bytes())
        kept = CACHE / f"{self._suite.name}-{digest.hexdigest()[:16]}.json"
        if not kept.exists():
            CACHE.mkdir(parents=True, exist_ok=True)
            for old in CACHE.glob(f"{self._suite.name}-*.json"):
                old.unlink()
            pid = _fork()
            if pid == 0:
                _leave(lambda: self._measure(session, kept))
            with _ending(pid):
                os.waitpid(pid, 0)
        if not kept.exists():
            raise RuntimeError(f"the tests of {self._suite.name} fail without any change; repair them first.")
        return _read(kept, self._suite)

    def _measure(self, session: pytest.Session, kept: Path) -> int:
        import coverage  # only this pass needs it

        modules = self._suite.modules
        measured = coverage.Coverage(
            data_file=None, include=[str(ROOT / module) for module in modules], concurrency=["thread", "greenlet"]
        )
        timing = _Timing(measured)
        session.config.pluginmanager.register(timing)
        measured.start()
        code = self._loop(session, list(session.items))
        measured.stop()
        if code:
            return code
        data = measured.get_data()
        tests = sorted(timing.seconds)
        number = {test: n for n, test in enumerate(tests)}
        lines = {
            module: {
                line: sorted(number[context] for context in contexts if context)
                for line, contexts in data.contexts_by_lineno(str(ROOT / module)).items()
            }
            for module in modules
        }
        body = {"tests": tests, "seconds": [timing.seconds[test] for test in tests], "lines": lines}
        kept.write_text(json.dumps(body))
        return 0


class _Timing:
    """Names the running test to coverage, and takes its time."""

    def __init__(self, measured) -> None:
        self.seconds: dict[str, float] = {}
        self._measured = measured

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        self._measured.switch_context(item.nodeid)
        started = time.perf_counter()
        try:
            return (yield)
        finally:
            self.seconds[item.nodeid] = time.perf_counter() - started
            self._measured.switch_context("")


def _read(path: Path, suite: Suite) -> Reach:
    body = json.loads(path.read_text())
    lines = {
        module: {int(line): [body["tests"][n] for n in tests] for line, tests in by_line.items()}
        for module, by_line in body["lines"].items()
    }
    return Reach(lines, dict(zip(body["tests"], body["seconds"], strict=True)), suite.about)


def _waste_no_time_on_small_counterexamples() -> None:
    from hypothesis import Phase, settings

    phases = (Phase.explicit, Phase.generate)
    settings.register_profile("mutants", deadline=None, derandomize=True, database=None, phases=phases)
    settings.load_profile("mutants")


def _is_unused(item: pytest.Item, unused: Sequence[str]) -> bool:
    return item.get_closest_marker("slow") is not None or any(item.nodeid.startswith(name) for name in unused)


def _is_ours(module: str) -> bool:
    """Whether a fork has to import it for itself."""
    if module.startswith("_") or module.partition(".")[0] == "lem_server":
        return True
    path = getattr(sys.modules[module], "__file__", None)
    return path is not None and (ROOT / "tests") in Path(path).parents


# --- Replacing the code of a function --------------------------------------------------------------------------

Trial = Callable[[Mutant, Sequence[str]], int]
Changes = dict[Mutant, list[tuple[FunctionType, CodeType]] | None]


def _functions_in_memory(modules: Sequence[str]) -> dict[tuple[str, str, int], list[FunctionType]]:
    """Return the functions of these modules by file, name and line, also those that decorators wrap."""
    paths = {str(ROOT / module) for module in modules}
    found: dict[tuple[str, str, int], list[FunctionType]] = defaultdict(list)
    for each in gc.get_objects():
        if isinstance(each, FunctionType) and each.__code__.co_filename in paths:
            code = each.__code__
            found[code.co_filename, code.co_qualname, code.co_firstlineno].append(each)
    return found


@functools.cache
def _compiled(path: str) -> CodeType:
    return compile(Path(path).read_text(), path, "exec", dont_inherit=True)


def changed_functions(
    mutant: Mutant, functions: dict[tuple[str, str, int], list[FunctionType]]
) -> list[tuple[FunctionType, CodeType]] | None:
    """Return the functions in memory whose code the mutant changes; None if it changes what runs at import."""
    path = str(ROOT / mutant.module)
    before = _compiled(path)
    after = compile(mutant.source(), path, "exec", dont_inherit=True)
    old, new = _functions(before), _functions(after)
    if _outside(before) != _outside(after) or old.keys() != new.keys():
        return None
    codes = {key: new[key] for key in old if _content(old[key]) != _content(new[key])}
    if any(count > 1 for key, count in _names(before).items() if key in codes):
        return None
    found = [(each, code) for key, code in codes.items() for each in functions.get((path, *key), ())]
    if any(function.__code__.co_freevars != code.co_freevars for function, code in found):
        return None
    return found or None


def _nested(code: CodeType) -> Iterator[CodeType]:
    return (each for each in code.co_consts if isinstance(each, CodeType))


def _is_class_body(code: CodeType) -> bool:
    return "__module__" in code.co_names and "__qualname__" in code.co_names


def _live(code: CodeType) -> Iterator[CodeType]:
    """The code of functions that exist as soon as a module or class is imported."""
    for each in _nested(code):
        if _is_class_body(each):
            yield from _live(each)
        else:
            yield each


def _functions(code: CodeType) -> dict[tuple[str, int], CodeType]:
    return {(each.co_qualname, each.co_firstlineno): each for each in _live(code)}


def _names(code: CodeType) -> Counter[tuple[str, int]]:
    return Counter((each.co_qualname, each.co_firstlineno) for each in _live(code))


def _outside(code: CodeType) -> object:
    """Everything of a module that runs at import."""
    plain = tuple(repr(each) for each in code.co_consts if not isinstance(each, CodeType))
    return code.co_code, plain, code.co_names, [_outside(each) for each in _nested(code) if _is_class_body(each)]


def _content(code: CodeType) -> object:
    plain = tuple(repr(each) for each in code.co_consts if not isinstance(each, CodeType))
    return code.co_code, plain, code.co_names, [_content(each) for each in _nested(code)]


# --- Importing everything over a changed module ----------------------------------------------------------------


class ChangedModule(importlib.machinery.SourceFileLoader, importlib.abc.MetaPathFinder):  # type: ignore[misc]
    """Gives one module another source."""

    def __init__(self, name: str, path: str, source: str) -> None:
        super().__init__(name, path)
        self._source = source

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Find the changed module alone."""
        return importlib.util.spec_from_loader(fullname, self, is_package=False) if fullname == self.name else None

    def get_code(self, fullname: str) -> CodeType:
        """Compile the changed source."""
        return compile(self._source, self.path, "exec", dont_inherit=True)


class _Chosen:
    """Runs the chosen tests alone, the quickest first."""

    def __init__(self, tests: Sequence[str]) -> None:
        self._order = {test: number for number, test in enumerate(tests)}

    def pytest_sessionstart(self) -> None:
        _waste_no_time_on_small_counterexamples()

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        chosen = (item for item in items if item.nodeid in self._order)
        items[:] = sorted(chosen, key=lambda item: self._order[item.nodeid])


def _preload(imports: Iterable[str]) -> None:
    """Import what every fork would import again. A module that can't be imported by name is the fork's concern."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in imports:
            with contextlib.suppress(Exception):
                importlib.import_module(name)


def _prepare_spawned(module: str, source: str) -> dict[str, str]:
    """Have subprocesses that a test spawns import the changed module too."""
    name = module.removeprefix("server/").removesuffix(".py").replace("/", ".")
    changed = {"name": name, "path": str(ROOT / module), "source": source}
    os.environ[SPAWNED] = json.dumps(changed)
    os.environ["PYTHONPATH"] = os.pathsep.join((str(Path(__file__).parent / "spawned"), os.environ["PYTHONPATH"]))
    return changed


def _from_the_start(mutant: Mutant, tests: Sequence[str]) -> int:
    sys.meta_path.insert(0, ChangedModule(**_prepare_spawned(mutant.module, mutant.source())))
    files = sorted({test.partition("::")[0] for test in tests})
    return int(pytest.main([*OPTIONS, *files], plugins=[_Chosen(tests)]))


# --- Forks -----------------------------------------------------------------------------------------------------


class _Running(NamedTuple):
    mutant: Mutant
    pid: int
    deadline: float


def _over(mutants: Sequence[Mutant], reach: Reach, jobs: int, trial: Trial) -> Generator[tuple[Mutant, Verdict]]:
    """Try mutants, `jobs` at a time."""
    waiting = list(mutants)[::-1]
    running: list[_Running] = []
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                mutant = waiting.pop()
                tests = reach.tests_of(mutant)
                if tests:
                    running.append(_start(mutant, tests, sum(reach.seconds[test] for test in tests), trial))
                else:
                    yield mutant, Verdict.UNREACHED
            if running:
                each, verdict = _ended(running)
                running.remove(each)
                yield each.mutant, verdict
    finally:
        for each in running:  # the program was stopped
            _end_group(each.pid)


def _start(mutant: Mutant, tests: Sequence[str], seconds: float, trial: Trial) -> _Running:
    pid = _fork()
    if pid == 0:
        os.setsid()
        _leave(lambda: trial(mutant, tests), silent=True)
    return _Running(mutant, pid, time.monotonic() + LIMIT_S + LIMIT_FACTOR * seconds)


_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True)


def _fork() -> int:
    """Fork; the kernel ends the fork with its parent, however that ends."""
    sys.stdout.flush()
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it ended before the kernel was asked
            os._exit(BROKEN)
    return pid


@contextlib.contextmanager
def _ending(pid: int) -> Iterator[None]:
    """End a fork if the program is stopped meanwhile. SIGTERM lets it end its own forks first."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
        raise


def _leave(function: Callable[[], int], *, silent: bool = False) -> None:
    """Call a function in a fork, and end the fork with its result."""
    code = BROKEN
    try:
        if silent:
            nowhere = os.open(os.devnull, os.O_RDWR)
            for stream in (1, 2):
                os.dup2(nowhere, stream)
        code = function()
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)  # what the parent does at its end is not the fork's


def _ended(running: list[_Running]) -> tuple[_Running, Verdict]:
    """Wait until one of the mutants is decided."""
    while True:
        for each in running:
            pid, status = os.waitpid(each.pid, os.WNOHANG)
            if pid:
                _end_group(each.pid)
                code = os.waitstatus_to_exitcode(status)
                if code == BROKEN:
                    raise RuntimeError(f"the trial of {each.mutant} broke")
                survived = code == 0
                return each, Verdict.SURVIVED if survived else Verdict.KILLED
            if time.monotonic() > each.deadline:
                _end_group(each.pid)
                os.waitpid(each.pid, 0)
                return each, Verdict.ENDLESS
        time.sleep(0.01)


def _end_group(pid: int) -> None:
    """End a fork with the subprocesses that it left."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
