"""Contract types of import-linter that cover every folder of a kind, so that a new one needs no new entry.

`own_queries`: only a capability itself imports its SQL modules. `own_folder`: only a folder itself imports its modules.
"""

from __future__ import annotations

from grimp import ImportGraph
from importlinter import Contract, ContractCheck, fields, output

SQL_SUFFIX = "queries"


class OwnQueries(Contract):
    """Refuse an import of `<package>.<capability>…queries` from outside of `<package>.<capability>`."""

    root_package = fields.StringField()

    def check(self, graph: ImportGraph, verbose: bool) -> ContractCheck:  # noqa: ARG002
        """Compare every importer's capability with the one of the imported SQL module."""
        violations = [
            f"{importer} imports {module}"
            for module in sorted(graph.modules)
            if module.startswith(f"{self.root_package}.") and module.endswith(SQL_SUFFIX)
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
