"""`lemctl show RUN --as-config` prints a file that submits the same experiment again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from sqlalchemy.engine import URL

from factories.runs import complete
from factories.served import Lem, by_sql, submitted
from lem_client import Client

SWEPT = """\
backend: simulated
model: builtin:tiny-llama
prompts: {file: prompts.txt, sample_size: 2}
warmup: {power_slope: null}
sweep: {simulated.batch_size: [1, 8]}
execution: {cycles: 2}
"""


@pytest.fixture
def prompts(tmp_path: Path) -> None:
    """A file of prompts beside the campaign files."""
    (tmp_path / "prompts.txt").write_text("Why is the sky blue?\nWhat is a watt?\n")


def hash_of(campaign: str) -> list[str]:
    with Client() as client:
        return [one.config_hash for one in client.experiments(campaign)]


@pytest.mark.usefixtures("prompts")
def test_the_printed_file_submits_the_same_experiment(lem: Lem, database_url: URL) -> None:
    campaign, runs = submitted(lem, SWEPT)
    by_sql(database_url, lambda engine: complete(engine, runs[1]))
    printed = lem("show", runs[1], "--as-config")
    assert printed.code == 0, printed.err
    assert f"# campaign    night ({campaign})" in printed.out
    assert "# devices     SIM-0 of worker worker-1" in printed.out
    assert "power_slope: null\n" in printed.out
    again, (run,) = submitted(lem, printed.out)
    assert hash_of(again) == [hash_of(campaign)[1]]
    assert lem("show", run, "--as-config", "--json").json["prompts"]["sample_size"] == 2


@pytest.mark.usefixtures("prompts")
def test_an_experiment_comes_with_its_cycles(lem: Lem) -> None:
    campaign, _ = submitted(lem, SWEPT)
    with Client() as client:
        first = next(client.experiments(campaign))
        assert client.experiment(first.id).model_copy(update={"provenance": None}) == first
    again, runs = submitted(lem, lem("show", first.id, "--as-config").out)
    assert len(runs) == 2
    assert hash_of(again) == [first.config_hash]


@pytest.mark.usefixtures("prompts")
def test_its_json_is_a_file_too(lem: Lem) -> None:
    campaign, runs = submitted(lem, SWEPT)
    document = lem("show", runs[0], "--as-config", "--json").json
    again, _ = submitted(lem, json.dumps(document))
    assert hash_of(again) == hash_of(campaign)[:1]


@pytest.mark.parametrize("what", ["night", "cmp", "wrk_" + "0" * 32])
def test_nothing_else_can_be_printed_so(lem: Lem, what: str) -> None:
    campaign, _ = submitted(lem)
    answer = lem("show", campaign if what == "cmp" else what, "--as-config")
    assert answer.code == 2
    assert answer.err.startswith("error: --as-config needs the id of a run or an experiment")


def test_an_experiment_that_is_not_there(lem: Lem) -> None:
    answer = lem("show", "exp_" + "0" * 32)
    assert answer.code == 1
    assert answer.err.startswith("error: there is no experiment exp_0")
