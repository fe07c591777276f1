"""A campaign that a real worker measured goes to another server as a file, and its results are the same there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from e2e.conftest import House, running_house

CAMPAIGN = """\
name: a study
backend: simulated
model: m
prompts: {file: prompts.txt}
output: {max_tokens: 8}
window: {min_duration_s: 0.5}
warmup: {enabled: false}
baseline: {min_s: 1, max_s: 1}
energy: {interval_ms: 20}
sweep: {simulated.power_w: [50, 100]}
"""


@pytest.mark.slow
def test_results_are_the_same_on_another_server(house: House, model_cache: Path) -> None:
    (house.folder / "prompts.txt").write_text("Why is the sky blue?\nWhat is a watt?\n")
    (house.folder / "study.yaml").write_text(CAMPAIGN)
    house.start_worker("simulated")
    done = house.lemctl("run", "study.yaml", "--quiet")
    assert done.returncode == 0, done.stderr
    with house.client() as client:
        (campaign,) = client.campaigns()
        runs = list(client.runs(campaign_id=campaign.id))
        results = {run.id: client.aggregate(run.id) for run in runs}
    exported = house.lemctl("export", "a study", "--bundle", "study.lem.tar", "--json")
    assert exported.returncode == 0, exported.stderr
    again = house.lemctl("show", runs[1].id, "--as-config")
    assert again.returncode == 0, again.stderr
    with running_house(model_cache) as other:
        imported = other.lemctl("import", house.folder / "study.lem.tar", "--json")
        assert imported.returncode == 0, imported.stderr
        assert json.loads(imported.stdout)["evidence_bytes"] == json.loads(exported.stdout)["evidence_bytes"]
        assert (
            other.lemctl("results", "a study", "--format", "csv").stdout
            == house.lemctl("results", "a study", "--format", "csv").stdout
        )
        for table in ("runs", "requests", "power"):
            arguments = ("export", "a study", "--table", table, "--format", "jsonl")
            rows = house.lemctl(*arguments).stdout
            assert other.lemctl(*arguments).stdout == rows
            assert [json.loads(row)["sweep.simulated.power_w"] for row in rows.splitlines()][
                :: rows.count("\n") - 1
            ] == [
                50,
                100,
            ]
        assert "imported    " in other.lemctl("show", campaign.id).stdout
        with other.client() as client:
            assert {run.id: client.aggregate(run.id) for run in client.runs(campaign_id=campaign.id)} == results
        # The prompts came along, so the printed configuration is accepted there too.
        (other.folder / "again.yaml").write_text(again.stdout)
        submitted = other.lemctl("submit", "again.yaml", "--json")
        assert submitted.returncode == 0, submitted.stderr
        with other.client() as client:
            (experiment,) = client.experiments(json.loads(submitted.stdout)["id"])
        assert experiment.config_hash == results[runs[1].id].config_hash
