"""Which modules are changed and which tests have to notice (`targets.toml`), and the mutants that may survive."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import NamedTuple

from mutants.mutations import ROOT, Change

HERE = Path(__file__).parent


class Suite(NamedTuple):
    """Modules with the tests that have to notice their mutants."""

    name: str
    modules: tuple[str, ...]
    tests: tuple[str, ...]
    unused: tuple[str, ...]
    """Node identifiers (or their beginnings) of tests that take too long to be run for each mutant."""
    database: bool
    """Whether the tests need PostgreSQL."""
    about: dict[str, tuple[str, ...]]
    """Files of tests by the beginning of modules' paths: they are tried first, because most tests pass through these
    modules, but few assert what they say."""


def read_suites() -> list[Suite]:
    """Return the suites; a module belongs to the first that names it."""
    taken: set[str] = set()
    suites = []
    for name, entry in tomllib.loads((HERE / "targets.toml").read_text()).items():
        found = {path.relative_to(ROOT).as_posix() for each in entry["modules"] for path in ROOT.glob(each)} - taken
        taken |= found
        found -= {path.relative_to(ROOT).as_posix() for each in entry.get("without", ()) for path in ROOT.glob(each)}
        modules, tests, unused = tuple(sorted(found)), tuple(entry["tests"]), tuple(entry.get("unused", ()))
        about = {module: tuple(files) for module, files in entry.get("about", {}).items()}
        suites.append(Suite(name, modules, tests, unused, entry.get("database", False), about))
    return suites


def read_equivalent() -> dict[Change, str]:
    """Return the mutants that change nothing, each with its reason."""
    listed = {}
    for module, entries in tomllib.loads((HERE / "equivalent.toml").read_text()).items():
        for entry in entries:
            assert entry["why"], entry
            listed[Change(module, entry["inside"], entry["before"], entry["after"])] = entry["why"]
    return listed
