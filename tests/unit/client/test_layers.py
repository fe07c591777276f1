"""What a file extends, its presets and the command line: precedence, provenance, and where a problem stands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lem_client.errors import FileError
from lem_client.files.campaign_file import CampaignFile, load_campaign_file
from lem_domain.backends.registry import BackendName
from lem_domain.config.experiment import ExperimentConfig
from lem_domain.config.hashing import config_hash
from lem_domain.config.presets import builtin_presets
from lem_domain.config.provenance import resolved_values

BASE = "backend: simulated\nmodel: builtin:tiny-llama\n"


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project folder, which is the present one."""
    (tmp_path / "lem.toml").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(name: str, text: str) -> Path:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def load(text: str, *overrides: str) -> CampaignFile:
    return load_campaign_file(write("c.yaml", text), overrides=overrides)


def config_of(file: CampaignFile) -> ExperimentConfig:
    (experiment,) = file.plan.experiments
    return experiment.config


def origins(file: CampaignFile) -> dict[str, tuple[str, str]]:
    (one,) = file.plan.experiments
    values = resolved_values(one.config, varied=one.varied, origins=file.spec.provenance)
    return {value.path: (value.source.value, value.detail) for value in values}


def problems(text: str, *overrides: str) -> tuple[str, ...]:
    with pytest.raises(FileError) as caught:
        load(text, *overrides)
    return caught.value.problems


# --- inheritance ------------------------------------------------------------------------------------------------------


def test_maps_merge_deeply_and_lists_replace() -> None:
    write(
        "base.yaml",
        BASE
        + "output: {mode: natural, max_tokens: 8, min_tokens: 2}\nsweep: {decoding.seed: [1, 2], precision: [auto]}\n",
    )
    file = load("_extends: base.yaml\noutput: {max_tokens: 9}\nsweep: {decoding.seed: [3]}\n")
    assert [one.varied for one in file.plan.experiments] == [{"decoding.seed": 3, "precision": "auto"}]
    assert (config_of(file).output.max_tokens, config_of(file).output.min_tokens) == (9, 2)
    assert file.spec.name == "c"


def test_several_files_are_laid_over_each_other_in_their_order() -> None:
    write("one.yaml", BASE + "output: {max_tokens: 1}\ndecoding: {seed: 1}\n")
    write("two.json", '{"output": {"max_tokens": 2}}')
    write("deeper/three.yaml", "_extends: ../two.json\ninput: {max_tokens: 3}\n")
    config = config_of(load("_extends: [one.yaml, deeper/three.yaml]\n"))
    assert (config.output.max_tokens, config.decoding.seed, config.input.max_tokens) == (2, 1, 3)


def test_a_model_given_as_text_is_its_id() -> None:
    write("base.yaml", BASE)
    write("dummy.yaml", "backend: simulated\nmodel: {weights: dummy}\n")
    assert config_of(load("_extends: base.yaml\nmodel: {weights: dummy}\n")).model.id == "builtin:tiny-llama"
    model = config_of(load("_extends: dummy.yaml\nmodel: other\n")).model
    assert (model.id, model.weights) == ("other", "dummy")


def test_a_circle_is_reported_with_its_chain() -> None:
    write("a.yaml", "_extends: b.yaml\n")
    write("b.yaml", "# b\n_extends: c.yaml\n")
    circle = "c.yaml → a.yaml → b.yaml → c.yaml"
    (found,) = problems("_extends: a.yaml\n")
    assert found.startswith("b.yaml:2: ")
    assert circle in found


@pytest.mark.parametrize("name", ["../outside.yaml", "/etc/passwd", "link.yaml", "folder/inner.yaml"])
def test_nothing_outside_the_project_is_read(
    project: Path, tmp_path_factory: pytest.TempPathFactory, name: str
) -> None:
    outside = tmp_path_factory.mktemp("elsewhere")
    (outside / "inner.yaml").write_text(BASE)
    (project / "link.yaml").symlink_to(outside / "inner.yaml")
    (project / "folder").symlink_to(outside)
    (found,) = problems(f"\n_extends: {name}\n")
    assert found.startswith(f"c.yaml:2: {name} ")
    assert f"project folder {project}" in found


def test_without_a_mark_the_project_is_the_files_own_folder(project: Path) -> None:
    (project / "lem.toml").unlink()
    write("base.yaml", BASE)
    path = write("inner/c.yaml", "_extends: ../base.yaml\n")
    with pytest.raises(FileError, match=rf"project folder {project}/inner"):
        load_campaign_file(path)
    (project / ".git").mkdir()
    assert len(load_campaign_file(path).plan.experiments) == 1


def test_files_that_are_not_there_too_many_or_no_names_are_reported_with_their_place() -> None:
    assert problems("_extends: gone.yaml\n")[0].startswith("c.yaml:1: _extends: there is no file gone.yaml")
    assert problems("_extends: 3\n")[0].startswith("c.yaml:1: _extends ")
    write("base.yaml", BASE)
    assert "more than 50 files" in problems(f"_extends: [{', '.join(['base.yaml'] * 51)}]\n")[0]
    write("bad.yaml", "output: [\n")
    assert problems("\n_extends: bad.yaml\n")[0].startswith("c.yaml:2: _extends: bad.yaml:2: ")


def test_a_problem_is_at_the_file_and_line_that_set_the_value() -> None:
    write("deep/base.yaml", BASE + "\noutput:\n  max_tokens: 0\n  min_tokns: 1\n")
    write("mid.yaml", "_extends: deep/base.yaml\nlimits: {load_s: -1}\n")
    expected = [
        "c.yaml:3: decoding.seed: ",
        "deep/base.yaml:5: output.max_tokens: ",
        "deep/base.yaml:6: output.min_tokns: unknown key 'min_tokns'; did you mean 'min_tokens'?",
        "mid.yaml:2: limits.load_s: ",
    ]
    found = sorted(problems("_extends: mid.yaml\n\nsweep: {decoding.seed: [x]}\n"))
    assert all(one.startswith(begin) for one, begin in zip(found, expected, strict=True)), found


def test_prompts_are_relative_to_the_file_that_names_them() -> None:
    write("sets/prompts.txt", "one\ntwo\n")
    write("sets/base.yaml", BASE + "prompts: {file: prompts.txt}\n")
    file = load("_extends: sets/base.yaml\n")
    assert [one.prompts for one in file.prompt_sets] == [("one", "two")]
    assert origins(file)["prompts.dataset"] == ("file", "sets/base.yaml:3")


# --- presets and precedence -------------------------------------------------------------------------------------------


def test_the_command_line_goes_before_the_file_before_presets_before_defaults() -> None:
    file = load(BASE + "presets: [quick, latency]\noutput: {max_tokens: 7}\n", "window.min_duration_s=3")
    config = config_of(file)
    assert config.traffic.concurrency == 1
    assert (config.output.max_tokens, config.window.min_duration_s, config.warmup.max_requests) == (7, 3, 5)
    told = origins(file)
    assert told["window.min_duration_s"] == ("command_line", "--set window.min_duration_s")
    assert told["output.max_tokens"] == ("file", "c.yaml:4")
    assert told["warmup.max_requests"] == ("preset", "quick")
    assert told["traffic.concurrency"] == ("preset", "latency")
    assert told["warmup.cv_threshold"] == ("default", "")
    assert told["model.id"] == ("file", "c.yaml:2")


def test_later_presets_go_before_earlier_ones_and_the_command_line_may_choose_them() -> None:
    assert config_of(load(BASE + "presets: [standard, factual]\n")).decoding.temperature == 0.3
    file = load(BASE + "presets: [standard, factual]\n", "presets=[creative]")
    assert config_of(file).decoding.temperature == 0.8
    assert origins(file)["decoding.temperature"] == ("preset", "creative")


def test_a_section_of_a_preset_counts_where_its_backend_is_used() -> None:
    file = load(BASE + "presets: throughput\nsweep: {backend: [simulated, pytorch]}\n")
    sizes = [(one.config.simulated or one.config.pytorch).batch_size for one in file.plan.experiments]  # type: ignore[union-attr]
    assert sizes == [32, 32]
    assert config_of(load(BASE + "presets: throughput\n")).pytorch is None
    vllm = config_of(load("backend: vllm\nmodel: m\npresets: throughput\n")).vllm
    tensorrt = config_of(load("backend: tensorrt\nmodel: m\npresets: latency\n")).tensorrt
    assert vllm is not None and tensorrt is not None
    assert (vllm.max_num_seqs, tensorrt.max_batch_size) == (256, 1)


def test_a_preset_may_be_a_file_of_the_users() -> None:
    write("presets/mine.yaml", "\noutput: {max_tokens: 11}\npytorch: {batch_size: 2}\n")
    file = load(BASE + "presets: [quick, presets/mine.yaml]\n")
    assert config_of(file).output.max_tokens == 11
    assert origins(file)["output.max_tokens"] == ("preset", "presets/mine.yaml, presets/mine.yaml:2")
    write("bad.yaml", "_extends: c.yaml\n")
    assert problems(BASE + "presets: [bad.yaml]\n")[0].startswith("bad.yaml:1: a preset can't have _extends")


def test_a_preset_that_is_not_there_is_reported_with_those_that_are() -> None:
    (found,) = problems(BASE + "presets: [fast]\n")
    assert found.startswith("c.yaml:3: there is no preset 'fast'; choose one of deterministic, greedy")


@pytest.mark.parametrize("name", builtin_presets())
@pytest.mark.parametrize("backend", BackendName)
def test_every_preset_is_valid_and_changes_what_it_says(name: str, backend: str) -> None:
    written = f"backend: {backend}\nmodel: m\npresets: [{name}]\n"
    # Deterministic and greedy are what the defaults are; they show where something else is asked for below them.
    write("loud.yaml", "decoding: {temperature: 2}\noutput: {mode: natural}\nprompts: {order: shuffled}\n")
    loud = f"backend: {backend}\nmodel: m\npresets: [loud.yaml, {name}]\n"
    plain = config_of(load(f"backend: {backend}\nmodel: m\npresets: [loud.yaml]\n"))
    assert config_of(load(loud)) != plain
    sources = {source for source, _ in origins(load(written)).values()}
    assert "preset" in sources


def test_what_the_command_line_sets_is_varied_no_more() -> None:
    text = BASE + (
        "experiments: [{name: a, output: {max_tokens: 3}}, {name: b, precision: float32}]\n"
        "sweep: {decoding.seed: [1, 2], zip: [{simulated.batch_size: [1, 2], input.max_tokens: [3, 4]}]}\n"
    )
    file = load(text, "output.max_tokens=5", "decoding.seed=9", "simulated.batch_size=4")
    configs = [one.config for one in file.plan.experiments]
    assert len(configs) == 4
    assert {config.output.max_tokens for config in configs} == {5}
    assert {config.decoding.seed for config in configs} == {9}
    assert {config.simulated.batch_size for config in configs if config.simulated} == {4}


def test_what_a_text_or_a_name_abbreviates_was_set_where_it_is_and_nothing_else() -> None:
    told = origins(load("backend: simulated\nmodel: m\ndecoding: creative\n"))
    assert (told["model.id"], told["model.revision"]) == (("file", "c.yaml:2"), ("default", ""))
    assert told["decoding.temperature"] == told["decoding.repetition_penalty"] == ("file", "c.yaml:3")
    assert told["decoding.top_k"] == ("default", "")
    told = origins(load(BASE + "presets: [creative]\ndecoding: {preset: standard,\n  temperature: 0.7}\n"))
    assert told["decoding.top_p"] == ("file", "c.yaml:4")
    assert told["decoding.temperature"] == ("file", "c.yaml:5")
    assert told["decoding.repetition_penalty"] == ("default", "")
    assert origins(load(BASE + "decoding: greedy\n"))["decoding.temperature"] == ("file", "c.yaml:3")


def test_decoding_by_its_name_begins_again_and_what_is_laid_over_it_counts_next_to_it() -> None:
    write("base.yaml", BASE + "decoding: standard\n")
    write("values.yaml", BASE + "decoding: {temperature: 0.2, repetition_penalty: 2}\n")

    def decoding(text: str, *overrides: str) -> list[tuple[float, float | None, float | None]]:
        configs = [one.config.decoding for one in load(text, *overrides).plan.experiments]
        return [(one.temperature, one.top_p, one.repetition_penalty) for one in configs]

    assert decoding("_extends: base.yaml\ndecoding: {temperature: 0.5}\n") == [(0.5, 0.95, None)]
    assert decoding("_extends: base.yaml\n", "decoding.temperature=0.5") == [(0.5, 0.95, None)]
    assert decoding("_extends: base.yaml\nsweep: {decoding.temperature: [0.5]}\n") == [(0.5, 0.95, None)]
    assert decoding("_extends: base.yaml\nexperiments: [{decoding: {temperature: 0.5}}, {decoding: creative}]\n") == [
        (0.5, 0.95, None),
        (0.8, 0.9, 1.1),
    ]
    for named in ("standard", "{preset: standard}"):
        assert decoding(f"_extends: values.yaml\ndecoding: {named}\n") == [(1, 0.95, None)]
        assert decoding(f"_extends: values.yaml\nexperiments: [{{decoding: {named}}}]\n") == [(1, 0.95, None)]
        assert decoding(BASE + f"presets: [creative]\ndecoding: {named}\n") == [(1, 0.95, None)]


def test_what_is_varied_was_set_where_its_axis_is() -> None:
    told = origins(load(BASE + "sweep:\n  decoding.seed: [1]\n  zip:\n    - output.max_tokens: [3]\n"))
    assert (told["decoding.seed"], told["output.max_tokens"]) == (("sweep", "c.yaml:4"), ("sweep", "c.yaml:6"))
    told = origins(load(BASE + "\nexperiments: [{output: {max_tokens: 3}}]\n"))
    assert told["output.max_tokens"] == ("sweep", "c.yaml:4")


def varied(file: CampaignFile) -> list[dict[str, Any]]:
    return [one.varied for one in file.plan.experiments]


def test_what_the_command_line_sets_is_varied_no_more_by_whole_sections_and_rows() -> None:
    around = "sweep: {output: [{max_tokens: 1}, {max_tokens: 2, mode: natural}], decoding.seed: [1, 2]}\n"
    configs = [one.config for one in load(BASE + around, "output.max_tokens=5", "decoding={seed: 3}").plan.experiments]
    assert [(one.output.max_tokens, one.output.mode, one.decoding.seed) for one in configs] == [
        (5, "fixed", 3),
        (5, "natural", 3),
    ]
    rows = (
        "sweep: {output.max_tokens: [1, 2], decoding.seed: [1, 2], "
        "exclude: [{output.max_tokens: 1, decoding.seed: 1}, {output.max_tokens: 2, decoding.seed: 2}], "
        "include: [{output.max_tokens: 9}, {output.max_tokens: 9, decoding.seed: 7}]}\n"
    )
    assert varied(load(BASE + rows, "output.max_tokens=2")) == [{"decoding.seed": 1}, {"decoding.seed": 7}]


def test_what_the_command_line_sets_goes_before_what_presets_vary() -> None:
    write(
        "mine.yaml",
        "sweep: {output.max_tokens: [1, 2], decoding.seed: [1, 2]}\n"
        "experiments: [{name: a, input: {max_tokens: 3}}, {name: b, precision: float32}]\n",
    )
    file = load(BASE + "presets: [mine.yaml]\n", "output.max_tokens=5", "input.max_tokens=9")
    configs = [one.config for one in file.plan.experiments]
    assert len(configs) == 4
    assert {(one.output.max_tokens, one.input.max_tokens) for one in configs} == {(5, 9)}


def test_a_list_is_set_as_a_whole_wherever_it_is() -> None:
    write("mine.yaml", "energy: {sources: [simulated]}\nexperiments: [{output: {max_tokens: 3}}]\n")
    text = BASE + "presets: [mine.yaml]\n"
    config = (
        load(text, "energy.sources=[codecarbon]", "experiments=[{output: {max_tokens: 4}}]").plan.experiments[0].config
    )
    assert (config.energy.sources, config.output.max_tokens) == (("codecarbon",), 4)
    (found,) = problems(text, "experiments.0.output.max_tokens=5")
    assert found.startswith("--set experiments.0.output.max_tokens: 'experiments' is a list")
    assert "'energy.sources' is a list" in problems(text, "energy.sources.0=auto")[0]


@pytest.mark.parametrize(
    "varied_models",
    ["sweep: {model: [a, b]}", "sweep: {zip: [{model: [a, b]}]}", "experiments: [{model: a}, {model: {id: b}}]", ""],
)
def test_a_model_set_by_its_name_is_its_id(varied_models: str) -> None:
    text = f"backend: simulated\nmodel: {{id: x, weights: dummy}}\n{varied_models}\n"
    model = config_of(load(text, "model=y")).model
    assert (model.id, model.weights) == ("y", "dummy")
    file = load(text, "model.revision=main")
    assert {one.config.model.revision for one in file.plan.experiments} == {"main"}
    assert len(file.plan.experiments) == (2 if varied_models else 1)
    assert origins(load(text, "model=y"))["model.id"] == ("command_line", "--set model")


def test_a_section_of_a_preset_counts_where_a_preset_chooses_its_backend() -> None:
    write("mine.yaml", "backend: pytorch\npytorch: {batch_size: 7}\nsimulated: {batch_size: 6}\n")
    config = config_of(load("model: m\npresets: [mine.yaml]\n"))
    assert config.pytorch is not None and config.pytorch.batch_size == 7
    config = config_of(load("model: m\npresets: [mine.yaml]\n", "backend=simulated"))
    assert config.simulated is not None and config.simulated.batch_size == 6
    assert config.pytorch is None


def test_old_defect_34_a_seed_of_0_is_a_seed() -> None:
    """`--seed 0` was taken for none."""
    file = load(BASE + "prompts: {order: shuffled, seed: 3}\n", "prompts.seed=0", "decoding.seed=0")
    assert config_of(file).prompts.seed == 0
    assert origins(file)["prompts.seed"] == ("command_line", "--set prompts.seed")


# --- the hash ---------------------------------------------------------------------------------------------------------

GOLDEN = "c62c49a78f23be2617c7fd8ef6d96de97a9a562250d26cd8e19390d08c676e5d"


@pytest.mark.parametrize(
    "text",
    [
        "model: builtin:tiny-llama\n",
        "# a comment\nbackend: pytorch   # the default\nmodel:\n  id: builtin:tiny-llama\n",
        "output: {mode: fixed, max_tokens: 128}\nmodel: {weights: checkpoint, id: 'builtin:tiny-llama'}\n",
        "model: builtin:tiny-llama\nname: another\nlabels: {team: a}\npriority: 3\nexecution: {cycles: 7}\n",
        "model: builtin:tiny-llama\npytorch: {}\ndecoding: {top_k: null}\nwindow: {min_duration_s: 10}\n",
        "presets: [greedy]\nmodel: builtin:tiny-llama\n",
    ],
)
def test_equal_spellings_have_one_hash_which_stays(text: str) -> None:
    """Over key order, comments, spellings, defaults written or not; names, labels and repetitions are no part of it."""
    assert [one.config_hash for one in load(text).plan.experiments] == [GOLDEN]


def test_where_a_value_came_from_is_no_part_of_the_hash() -> None:
    write("base.yaml", "model: builtin:tiny-llama\noutput: {max_tokens: 32}\npytorch: {batch_size: 8}\n")
    by_file = config_hash(config_of(load("_extends: base.yaml\n")))
    overrides = ("output.max_tokens=32", "pytorch.batch_size=8")
    by_hand = config_hash(config_of(load("model: builtin:tiny-llama\n", *overrides)))
    assert by_file == by_hand == "fb81d23055d40a83ed6aea07911dbda593af76b99ee2ae373fcb441d97962faf"
