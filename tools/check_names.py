"""Refuse two classes of one name in the product (`python -m tools.check_names`).

A class is named by its use (`ClaimableRun`, `ExportedRun`), so that a name found in a log or a traceback leads to one
definition.
"""

from __future__ import annotations

import ast
import sys
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[1]
PRODUCT = ("domain", "server", "worker", "client")
GENERATED = {"client/lem_client/async_client.py", "client/lem_client/async_sender.py"}


def classes_by_name() -> dict[str, list[str]]:
    """Return where each class name is defined at the top level of a module."""
    found: dict[str, list[str]] = defaultdict(list)
    for folder in PRODUCT:
        for path in sorted((ROOT / folder).rglob("*.py")):
            name = path.relative_to(ROOT).as_posix()
            if name not in GENERATED:
                tree = ast.parse(path.read_text(encoding="utf-8"))
                for node in tree.body:
                    if isinstance(node, ast.ClassDef):
                        found[node.name].append(f"{name}:{node.lineno}")
    return found


def main() -> int:
    """Print every name that is defined more than once; return 1 if there is one."""
    repeated = {name: found for name, found in classes_by_name().items() if len(found) > 1}
    for name, locations in sorted(repeated.items()):
        print(f"class {name} is defined {len(locations)} times: {', '.join(locations)}; name each by its use")  # noqa: T201
    return 1 if repeated else 0


if __name__ == "__main__":
    sys.exit(main())
