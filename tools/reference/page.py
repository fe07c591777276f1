"""The Markdown page of every configuration key, with the tests that prove each."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby

from lem_domain.backends.registry import BackendName
from lem_domain.config.keys import Key
from lem_domain.config.presets import builtin_presets
from lem_domain.config.schema import campaign_keys, experiment_keys
from tools.reference.marks import Proof, proofs

_HEAD = """# Configuration reference

Written by `make reference` from the models in `domain/lem_domain/config/` and from the tests that prove each key; do
not edit. [configuration.md](../configuration.md) describes how files are combined; editors use the JSON Schema
[campaign.schema.json](campaign.schema.json).

An empty default means unset: the engine's own default applies and is read back. *Engine* is the engine's own name.
*Proved on* names the engines, or the part of LEM, on which a test shows that the key takes effect; the tests are
listed at the end.
"""


def page() -> str:
    """Return the page in Markdown."""
    by_key: dict[str, list[Proof]] = {}
    for proof in proofs():
        by_key.setdefault(proof.key, []).append(proof)
    lines = [
        _HEAD,
        "## A campaign",
        "",
        *_table(campaign_keys(), by_key),
        "",
        "## An experiment, for every backend",
        "",
    ]
    universal = [key for key in experiment_keys() if key.section not in set(BackendName)]
    lines += _table(universal, by_key)
    for backend, keys in groupby(experiment_keys(), key=lambda key: key.section):
        if backend in set(BackendName):
            lines += ["", f"## Backend `{backend}`", "", *_table(list(keys), by_key)]
    lines += ["", "## Presets", "", "| preset | for | values |", "|---|---|---|"]
    lines += [
        f"| `{one.name}` | {one.description} | `{json.dumps(one.values)}` |" for one in builtin_presets().values()
    ]
    lines += ["", "## Proofs", "", *_proofs(by_key)]
    return "\n".join(lines) + "\n"


def _table(keys: Iterable[Key], by_key: Mapping[str, list[Proof]]) -> Iterator[str]:
    yield "| key | type | default | unit | constraint | meaning | engine | proved on |"
    yield "|---|---|---|---|---|---|---|---|"
    for key in keys:
        where = ", ".join(sorted({proof.on for proof in by_key.get(key.path, ())}))
        engine = f"`{key.engine_parameter}`" if key.engine_parameter else ""
        cells = (
            f"`{key.path}`",
            "" if key.group and key.type == "map" else key.type,
            _default(key),
            (key.unit or "") if key.unit != "1" else "–",
            key.constraint or "",
            key.description,
            engine,
            where,
        )
        yield "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def _default(key: Key) -> str:
    if key.required:
        return "required"
    if key.default in (None, {}, []) or key.group:
        return ""
    return f"`{json.dumps(key.default, ensure_ascii=False)}`"


def _proofs(by_key: Mapping[str, list[Proof]]) -> Iterator[str]:
    for key in sorted(by_key):
        yield f"- `{key}`: " + ", ".join(sorted({f"`{proof.test}` ({proof.on})" for proof in by_key[key]}))
