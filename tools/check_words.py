"""Refuse retired wordings in the product and its documentation (`python -m tools.check_words`).

Each entry is a pattern and what to write instead. CONTRIBUTING.md has the rules behind them. A line that must keep one
of these wordings (a name on the wire, a quotation) is listed in `ALLOWED` with the file that it is in.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
CHECKED = ("client", "domain", "server", "worker", "migrations", "benchmarks", "examples", "tools", "docs", "deploy")
CHECKED_FILES = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "Makefile", "pyproject.toml")
GENERATED = ("docs/reference/", "server/lem_server/http/docs_assets/")

RETIRED = {
    r"\bt(?:old|ells?|elling)\b": "reports, says, states",
    r"\b(?:stand|stands|stood)\b": "is, are, applies",
    r"\bbeside\b": "next to, together with, and",
    r"\b(?:nobody|somebody|whoever|whomever|everybody)\b": "name the subject, or use the passive",
    r"\b(?:anew|afresh)\b": "again; recreated",
    r"\bof (?:its|their|our|his) own\b": "its own X, separate, a subprocess",
    r"\bgo(?:es)? on\b": "continues, recovers",
    r"\bput aside\b": "quarantined",
    r"\bstrangers?\b": "foreign process",
    r"\bbeats?\b": "heartbeat",
    r"\b(?:made|make|makes) anew\b": "recreate",
    r"\bcomes? about\b|\bcame about\b": "is computed, is measured",
}
ALLOWED = {
    "tools/check_words.py": (r".*",),  # the patterns themselves
    "server/lem_server/exports/bundle_export.py": (r"\.tell\(",),
    "client/lem_client/cli/processes.py": (r"\.tell\(",),
    "server/lem_server/leases/routes.py": (r"def beat\(",),  # the operation id in the API document
}


def checked_files() -> Iterator[Path]:
    """Yield every tracked text file that the rules apply to."""
    listed = subprocess.run(["git", "ls-files", *CHECKED, *CHECKED_FILES], cwd=ROOT, capture_output=True, check=True)
    for name in listed.stdout.decode().splitlines():
        if name.endswith((".py", ".md", ".yaml", ".toml", ".mako", "Makefile")) and not name.startswith(GENERATED):
            yield ROOT / name


def retired_wordings(path: Path) -> Iterator[str]:
    """Yield one line of explanation for each retired wording in a file."""
    name = path.relative_to(ROOT).as_posix()
    allowed = [re.compile(pattern) for pattern in ALLOWED.get(name, ())]
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if any(pattern.search(line) for pattern in allowed):
            continue
        for pattern, instead in RETIRED.items():
            for found in re.finditer(pattern, line, re.IGNORECASE):
                yield f"{name}:{number}: “{found[0]}”: write {instead}"


def main() -> int:
    """Print every retired wording; return 1 if there is one."""
    problems = [problem for path in checked_files() if path.is_file() for problem in retired_wordings(path)]
    for problem in problems:
        print(problem)  # noqa: T201
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
