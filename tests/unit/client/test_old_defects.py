"""What an earlier tool accepted and ignored; each name has the number of the defect."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lem_client.errors import FileError
from lem_client.files.campaign_file import load_campaign_file
from lem_domain.backends.registry import BackendName
from lem_domain.config.documents import flattened, value_at
from lem_domain.config.presets import builtin_presets
from lem_domain.config.schema import campaign_keys, experiment_keys
from lem_domain.config.sweep import parse_sweep

EXAMPLES = sorted((Path(__file__).parents[3] / "examples").glob("*.yaml"))
BASE: dict[str, Any] = {"backend": "simulated", "model": {"id": "builtin:tiny-llama"}}


def load(folder: Path, document: dict[str, Any], *overrides: str) -> Any:
    path = folder / "c.yaml"
    path.write_text(yaml.safe_dump(document))
    return load_campaign_file(path, overrides=overrides)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_26_every_axis_of_every_example_varies_something(path: Path) -> None:
    file = load_campaign_file(path)
    varied = {name for one in file.plan.experiments for name in one.varied}
    assert set(parse_sweep(file.spec.sweep).paths) <= varied
    assert len(file.plan.experiments) > 1 or not file.spec.sweep


@pytest.mark.parametrize("name", ["grid", "axes", "shared", "configs"])
def test_26_a_sweep_by_another_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(FileError, match=f"unknown key '{name}'"):
        load(tmp_path, {**BASE, name: {"pytorch.batch_size": [1, 8]}})


@pytest.mark.parametrize("name", builtin_presets())
@pytest.mark.parametrize("backend", BackendName)
def test_26_every_value_of_a_preset_is_in_the_configuration(tmp_path: Path, name: str, backend: BackendName) -> None:
    (one,) = load(tmp_path, {**BASE, "backend": backend.value, "presets": [name]}).plan.experiments
    config = one.config.model_dump(mode="json")
    for path, value in flattened(builtin_presets()[name].values):
        if path.partition(".")[0] in (backend, *config) and config.get(path.partition(".")[0]) is not None:
            assert value_at(config, path.split(".")) == value


def test_35_listed_experiments_retries_and_seeds_take_effect(tmp_path: Path) -> None:
    listed = [{"output": {"max_tokens": 3}}, {"decoding": {"seed": 4}}]
    file = load(tmp_path, {**BASE, "experiments": listed, "execution": {"retries": 2}}, "execution.cycles=3")
    configs = [one.config for one in file.plan.experiments]
    assert [(one.output.max_tokens, one.decoding.seed) for one in configs] == [(3, 0), (128, 4)]
    assert (file.spec.execution.retries, len(file.plan.runs)) == (2, 6)


@pytest.mark.parametrize("name", ["schedule", "health_check", "cold_start", "daemon", "query_rate", "io"])
def test_35_what_would_have_no_effect_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(FileError, match=f"unknown key '{name}'"):
        load(tmp_path, {**BASE, name: {}})


LISTS = [key.path for key in experiment_keys() if key.group and key.type.startswith("list")]
GROUPS = [key.path for key in (*experiment_keys(), *campaign_keys()) if key.group and "[]" not in key.path]


@pytest.mark.parametrize("path", ["", *GROUPS])
def test_47_a_typo_is_reported_at_every_depth(tmp_path: Path, path: str) -> None:
    document: dict[str, Any] = {**BASE}
    backend = path.partition(".")[0]
    if backend in set(BackendName):
        document["backend"] = backend
    at = document
    parts = path.split(".") if path else []
    for part in parts[:-1]:
        at = at.setdefault(part, {})
    wrong: dict[str, Any] = {"no_such_key": 1}
    if parts:
        at[parts[-1]] = [wrong] if path in LISTS else {**at.get(parts[-1], {}), **wrong}
    else:
        at |= wrong
    with pytest.raises(FileError) as caught:
        load(tmp_path, document)
    assert any("unknown key 'no_such_key'" in problem for problem in caught.value.problems)


ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=6,
)
NAMES = ["_extends", "presets", "sweep", "experiments", "on_refused"]
NAMES += [key.path.partition(".")[0] for key in experiment_keys()]
PATHS = [
    "model",
    "model.id",
    "decoding.preset",
    "prompts.file",
    "sweep.zip",
    "sweep.x",
    "experiments.0.name",
    "presets",
]
PATHS += ["presets", *(key.path for key in experiment_keys()[::9])]
SWEPT = st.dictionaries(
    st.sampled_from(["zip", "include", "exclude", "backend", "output.max_tokens", "model", "a..b"]), ANY, max_size=3
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.dictionaries(st.sampled_from(NAMES), ANY | SWEPT, max_size=4),
    st.lists(st.builds("{}={}".format, st.sampled_from(PATHS), ANY) | st.text(max_size=9), max_size=2),
    st.sampled_from(["yaml", "json"]),
)
def test_no_document_and_no_override_gets_a_traceback(
    tmp_path: Path, document: dict[str, Any], overrides: list[str], kind: str
) -> None:
    path = tmp_path / f"fuzzed.{kind}"
    path.write_text(yaml.safe_dump({**BASE, **document}, default_flow_style=kind == "json", allow_unicode=True))
    try:
        load_campaign_file(path, overrides=overrides)
    except FileError as error:
        assert error.problems
        assert all(problem.strip() for problem in error.problems)
