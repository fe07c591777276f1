"""Contract types of import-linter that cover every folder of a kind, so that a new one needs no new entry.

`own_sql`: only a capability itself imports its modules with SQL, except those that are its interface to others.
`own_folder`: only a folder itself imports its modules.
"""

from __future__ import annotations

import re
from typing import cast

from grimp import ImportGraph
from importlinter import Contract, ContractCheck, fields, output

_WRITES_SQL = re.compile(r"from sqlalchemy import .*\btext\b")


class OwnSql(Contract):
    """Refuse an import of a module with SQL in `<package>.<capability>` from outside, unless `shared` names it."""

    root_package = fields.StringField()
    shared = fields.ListField(subfield=fields.StringField())

    def check(self, graph: ImportGraph, verbose: bool) -> ContractCheck:  # noqa: ARG002
        """Compare every importer's capability with the one of the imported module."""
        with_sql = {
            module
            for module in graph.find_modules_that_directly_import("sqlalchemy")
            if any(
                _WRITES_SQL.match(found["line_contents"])
                for found in graph.get_import_details(importer=module, imported="sqlalchemy")
            )
        }
        violations = [
            f"{importer} imports {module}"
            for module in sorted(with_sql - set(cast("list[str]", self.shared)))
            for importer in sorted(graph.find_modules_that_directly_import(module))
            if importer.split(".")[:2] != module.split(".")[:2]
        ]
        return ContractCheck(kept=not violations, metadata={"violations": violations})

    def render_broken_contract(self, check: ContractCheck) -> None:
        """Print each forbidden import."""
        for violation in check.metadata["violations"]:
            output.print_error(f"- {violation}")


class OwnFolder(Contract):
    """Refuse an import of `<package>.<folder>.…` from outside of `<package>.<folder>`; plain modules are free."""

    package = fields.StringField()

    def check(self, graph: ImportGraph, verbose: bool) -> ContractCheck:  # noqa: ARG002
        """Compare every importer with the folder of the imported module."""
        folders = [one for one in graph.find_children(str(self.package)) if graph.find_children(one)]
        violations = [
            f"{importer} imports {module}"
            for folder in sorted(folders)
            for module in sorted({folder, *graph.find_descendants(folder)})
            for importer in sorted(graph.find_modules_that_directly_import(module))
            if importer != folder and not importer.startswith(f"{folder}.")
        ]
        return ContractCheck(kept=not violations, metadata={"violations": violations})

    def render_broken_contract(self, check: ContractCheck) -> None:
        """Print each forbidden import."""
        for violation in check.metadata["violations"]:
            output.print_error(f"- {violation}")
