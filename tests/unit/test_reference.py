"""The reference is what the models say now, and editors can check every example with its schema."""

from __future__ import annotations

from pathlib import Path

import jsonschema
import pytest
import yaml

from lem_client.files.campaign_file import load_campaign_file
from lem_client.files.yaml_reader import read_document
from lem_domain.config.schema import campaign_file_schema, campaign_keys, experiment_keys
from tools.reference.__main__ import FOLDER, reference_files

ROOT = Path(__file__).parents[2]
SCHEMA = jsonschema.Draft202012Validator(campaign_file_schema())
EXAMPLES = sorted((ROOT / "examples").rglob("*.yaml"))


def test_the_reference_is_current() -> None:
    """`make reference` writes it."""
    stored = {path.name: path.read_text(encoding="utf-8") for path in FOLDER.iterdir()}
    assert stored == reference_files()


def test_the_reference_has_every_key() -> None:
    text = (FOLDER / "configuration.md").read_text(encoding="utf-8")
    assert [key.path for key in (*experiment_keys(), *campaign_keys()) if f"| `{key.path}` |" not in text] == []


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_every_example_is_valid_for_the_schema_and_for_the_client(path: Path) -> None:
    SCHEMA.validate(read_document(path).values)
    first = path.read_text(encoding="utf-8").splitlines()[0]
    assert first == "# yaml-language-server: $schema=../docs/reference/campaign.schema.json"
    if not path.name.startswith("base-"):
        assert load_campaign_file(path).plan.experiments


@pytest.mark.parametrize(
    "document",
    [
        {"model": "m", "outptu": {}},
        {"model": "m", "output": {"max_tokens": 0}},
        {"model": "m", "pytorch": {"bacth_size": 2}},
        {"model": "m", "sweep": {"pytorch.bacth_size": [1]}},
        {"model": "m", "sweep": {"pytorch.batch_size": 1}},
        {"model": "m", "sweep": {"pytorch.batch_size": ["many"]}},
        {"model": "m", "sweep": {"backend": ["pytroch"]}},
        {"model": "m", "sweep": {"include": [{"output.mode": "natrual"}]}},
        {"model": "m", "decoding": "greddy"},
        {"model": "m", "experiments": [{"backend": "no-such"}]},
        {"model": "m", "execution": {"cycles": "three"}},
        {"model": "m", "on_refused": "perhaps"},
    ],
)
def test_the_schema_refuses_what_the_client_refuses(document: dict[str, object]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        SCHEMA.validate(document)


@pytest.mark.parametrize(
    "document",
    [
        {"model": "m", "decoding": "greedy"},
        {"model": {"id": "m"}, "decoding": {"preset": "standard", "temperature": 0.5}},
        {"model": "m", "experiments": [{"name": "a", "decoding": "standard"}, {"decoding": {"seed": 1}}]},
        {"model": "m", "sweep": {"decoding": ["greedy", {"temperature": 1}], "model": ["m", {"id": "n"}]}},
        {"model": "m", "sweep": {"zip": [{"decoding.top_k": [None, 5], "energy.sources": ["auto", ["rapl"]]}]}},
    ],
)
def test_the_schema_takes_what_the_client_takes(document: dict[str, object], tmp_path: Path) -> None:
    SCHEMA.validate(document)
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump({"on_refused": "skip", **document}))
    assert load_campaign_file(path).plan.experiments


def test_the_schema_itself_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(campaign_file_schema())
