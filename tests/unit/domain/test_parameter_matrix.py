"""Every configuration key is described, bounded, and proved by a test to take effect; the list is the models' own."""

from __future__ import annotations

import re
from importlib.metadata import version
from pathlib import Path

import pytest

from lem_domain.backends.registry import BackendName
from lem_domain.config.keys import Key
from lem_domain.config.schema import campaign_keys, experiment_keys
from tools.reference.marks import UnreadableMark, proofs

EVERY = (*experiment_keys(), *campaign_keys())
LEAVES = [key for key in EVERY if not key.group]
UNITS = {"_s": "s", "_ms": "ms", "_w": "W", "_c": "°C", "_j": "J", "_per_s": "1/s", "_bytes": "bytes", "_gb": "GB"}
"""What the end of a key's name says about its unit; the longest end counts."""


def test_every_key_is_proved_to_take_effect() -> None:
    """A key that no test proves is a promise that nobody keeps: prove it, with the mark, or remove it."""
    proved = {proof.key for proof in proofs()}
    assert [key.path for key in LEAVES if key.path not in proved] == []


def test_no_test_proves_a_key_that_is_not_there() -> None:
    known = {key.path for key in EVERY}
    assert [(proof.key, proof.test) for proof in proofs() if proof.key not in known] == []


def test_every_key_says_what_it_means() -> None:
    name = r"[a-z][a-z0-9_]*(\[\])?"
    assert [key.path for key in EVERY if not re.fullmatch(rf"{name}(\.{name})*", key.path)] == []
    assert [key.path for key in EVERY if len(key.description) < 10 or not key.description.endswith(".")] == []


def test_every_quantity_has_a_unit_and_a_bound() -> None:
    """A plain number's unit is `1`; a seed has none. `unit=`, and `ge` or `gt` at least."""
    quantities = [key for key in LEAVES if re.search("integer|number", key.type)]
    assert [key.path for key in quantities if key.constraint is None] == []
    assert [key.path for key in quantities if key.unit is None and key.name != "seed"] == []
    assert [(key.path, key.unit) for key in quantities if _said_by_its_name(key) not in (None, key.unit)] == []


def _said_by_its_name(key: Key) -> str | None:
    end = max((end for end in UNITS if key.name.endswith(end)), key=len, default=None)
    return UNITS[end] if end else None


def test_every_text_is_bounded() -> None:
    """`max_length`: what is stored and shown has a limit."""
    assert [key.path for key in LEAVES if key.type == "text" and key.constraint is None] == []


def test_every_key_of_an_engine_names_the_engines_own_parameter() -> None:
    """The simulated backend is its own engine."""
    engines = set(BackendName) - {BackendName.SIMULATED}
    assert [key.path for key in LEAVES if key.section in engines and not key.engine_parameter] == []


def test_what_is_proved_on_an_engine_is_proved_on_the_one_that_is_installed() -> None:
    """`transformers 5.23.0` in a mark must be what the tests run on."""
    told = {proof.on for proof in proofs() if proof.on.startswith("transformers ")}
    assert told <= {f"transformers {version('transformers')}"}


def test_a_mark_that_no_one_could_read_is_refused(tmp_path: Path) -> None:
    tests = tmp_path / "tests"
    tests.mkdir()
    source = "import pytest\n\n@pytest.mark.{}\ndef test_it(): ...\n"
    for mark in ("proves(KEY, on='x')", "proves('a')", "proves(on='x')", "proves('a', on=ENGINE)"):
        (tests / "test_a.py").write_text(source.format(mark))
        with pytest.raises(UnreadableMark, match=r"tests/test_a.py::test_it: write proves"):
            proofs.__wrapped__(tests)
    (tests / "test_a.py").write_text(source.format("proves('a.b', 'c', on='simulated')"))
    assert [tuple(proof) for proof in proofs.__wrapped__(tests)] == [
        ("a.b", "simulated", "tests/test_a.py::test_it"),
        ("c", "simulated", "tests/test_a.py::test_it"),
    ]
