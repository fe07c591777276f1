"""A configuration written out as a file is the same configuration when it is read back, whatever stands in it."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lem_client.files import as_config
from lem_client.files.campaign_file import load_campaign_file
from lem_domain.config.execution import ExecutionConfig
from lem_domain.config.experiment import ExperimentConfig
from lem_domain.config.hashing import config_hash
from lem_domain.errors import LemError
from lem_domain.states import CampaignState, RunState
from lem_domain.wire.campaigns import CampaignView, ExperimentView, RunCounts
from lem_domain.wire.runs import RunView

AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
DIGITS = "0" * 32


def experiment_view(config: ExperimentConfig, **changed: Any) -> ExperimentView:
    return ExperimentView(
        id=f"exp_{DIGITS}",
        campaign_id=f"cmp_{DIGITS}",
        display_name="an experiment",
        varied={"precision": "bfloat16"},
        config=config,
        **{"config_hash": config_hash(config), **changed},
    )


def campaign_view(name: str = "a campaign", **execution: Any) -> CampaignView:
    return CampaignView(
        id=f"cmp_{DIGITS}",
        name=name,
        state=CampaignState.COMPLETED,
        created_at=AT,
        submitted_by="somebody",
        execution=ExecutionConfig(**execution),
        priority=0,
        labels={},
        experiments=1,
        runs=RunCounts(aggregated=1),
    )


RUN = RunView(
    id=f"run_{DIGITS}",
    campaign_id=f"cmp_{DIGITS}",
    experiment_id=f"exp_{DIGITS}",
    display_name="an experiment",
    backend="simulated",
    cycle=2,
    position=1,
    state=RunState.AGGREGATED,
    attempts=1,
    current_attempt=None,
    cancel_requested=False,
    created_at=AT,
    updated_at=AT,
)


def written(config: ExperimentConfig, tmp_path: Path, *, run: RunView | None = RUN, **execution: Any) -> Path:
    campaign, experiment = campaign_view(**execution), experiment_view(config)
    values = as_config.document(experiment, campaign, run)
    text = as_config.yaml_text(values, as_config.origin_lines("http://lem", experiment, campaign, run, None))
    path = tmp_path / "as_config.yaml"
    path.write_text(text, encoding="utf-8")
    return path


PYTORCH = {"backend": "pytorch", "model": "builtin:tiny-llama"}
SIMULATED = {"backend": "simulated", "model": "m"}


@pytest.mark.parametrize(
    "values",
    [
        {"model": "m"},
        {**PYTORCH, "pytorch": {}},
        {**PYTORCH, "pytorch": {"batch_size": 1}},
        {**PYTORCH, "pytorch": {"batch_size": 8, "attn_implementation": "eager"}, "precision": "bfloat16"},
        {**PYTORCH, "model": {"id": "org/model", "revision": "1e3", "weights": "dummy"}},
        {**PYTORCH, "warmup": {"power_slope": None, "cv_threshold": 1e-05}},
        {**PYTORCH, "prompts": {"dataset": "ab" * 32, "sample_size": 3, "order": "shuffled", "seed": 7}},
        {**PYTORCH, "energy": {"sources": ["nvml", "rapl"], "interval_ms": 20}},
        {**PYTORCH, "traffic": {"mode": "open", "rate_per_s": 0.25, "slo": {"ttft_ms": 100.5}}},
        {**PYTORCH, "decoding": {"temperature": 0.7, "top_k": 40, "seed": 2**62}},
        {**SIMULATED, "simulated": {"fail": {"at": "load", "how": "raise"}, "misreport": ["batch_size"]}},
    ],
)
def test_what_is_read_back_is_the_same_experiment(values: dict[str, Any], tmp_path: Path) -> None:
    config = ExperimentConfig.model_validate(values)
    (planned,) = load_campaign_file(written(config, tmp_path)).plan.experiments
    assert planned.config_hash == config_hash(config)
    assert planned.config.model_dump() == config.model_dump()


@settings(max_examples=30)
@given(model=st.text(min_size=1, max_size=40).filter(lambda text: "\x00" not in text and text.isprintable()))
def test_any_name_of_a_model_survives(model: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    config = ExperimentConfig.model_validate({"model": model, "backend": "simulated"})
    (planned,) = load_campaign_file(written(config, tmp_path_factory.mktemp("again"))).plan.experiments
    assert planned.config.model.id == model


def test_what_cannot_be_seen_is_escaped(tmp_path: Path) -> None:
    config = ExperimentConfig.model_validate({"model": "a\u00a0b\u2028c\x1b[31m", "backend": "simulated"})
    path = written(config, tmp_path)
    assert path.read_text().replace("\n", "").isprintable()
    (planned,) = load_campaign_file(path).plan.experiments
    assert planned.config.model.id == config.model.id


def test_what_is_unset_stays_unset_and_defaults_are_written_out_and_marked(tmp_path: Path) -> None:
    config = ExperimentConfig.model_validate({**PYTORCH, "pytorch": {"batch_size": 4}})
    text = written(config, tmp_path).read_text()
    assert "attn_implementation" not in text
    assert "  batch_size: 4\n" in text
    assert "  max_tokens: 512  # the default\n" in text
    assert "precision: auto  # the default\n" in text


def test_a_run_is_one_cycle_and_an_experiment_all_that_its_campaign_gave_it(tmp_path: Path) -> None:
    config = ExperimentConfig.model_validate(SIMULATED)
    run = load_campaign_file(written(config, tmp_path, cycles=5, retries=2))
    assert len(run.plan.runs) == 1
    experiment = load_campaign_file(written(config, tmp_path, run=None, cycles=5, retries=2))
    assert len(experiment.plan.runs) == 5
    assert experiment.spec.execution.retries == 2


def test_comments_say_where_it_came_from(tmp_path: Path) -> None:
    text = written(ExperimentConfig.model_validate(SIMULATED), tmp_path).read_text()
    head = [line for line in text.splitlines() if line.startswith("# ")]
    assert head[0] == f"# The configuration of run run_{DIGITS} (cycle 2), to be submitted again with `lemctl run`."
    assert "# server      http://lem" in head
    assert "# varied      precision = bfloat16" in head


def test_a_client_that_reads_another_configuration_refuses() -> None:
    config = ExperimentConfig.model_validate(SIMULATED)
    with pytest.raises(LemError, match=f"exp_{DIGITS}"):
        as_config.document(experiment_view(config, config_hash="0" * 64), campaign_view(), RUN)
