"""Campaign files: what they become, and one sentence with its place for each thing that is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lem_client.errors import FileError
from lem_client.files.campaign_file import load_campaign_file
from lem_client.files.yaml_reader import parse_value, read_document
from lem_domain.config.validation import MOST_PROBLEMS
from lem_domain.prompt_sets import prompts_digest

BASE = "backend: simulated\nmodel: builtin:tiny-llama\n"


def write(folder: Path, text: str | bytes, name: str = "c.yaml") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def problems(path: Path, **options: object) -> list[str]:
    with pytest.raises(FileError) as caught:
        load_campaign_file(path, **options)  # type: ignore[arg-type]
    assert str(caught.value) == caught.value.problems[0]
    return [problem.replace(f"{path.parent}/", "") for problem in caught.value.problems]


# --- what they become -------------------------------------------------------------------------------------------------


@pytest.mark.proves("name", on="client")
def test_a_file_becomes_a_campaign_named_after_it(tmp_path: Path) -> None:
    loaded = load_campaign_file(write(tmp_path, BASE + "sweep: {simulated.batch_size: [1, 8]}\n", "night.yaml"))
    assert loaded.spec.name == "night"
    assert [one.display_name for one in loaded.plan.experiments] == ["batch_size=1", "batch_size=8"]
    assert loaded.prompt_sets == ()


def test_aliases_and_merges_are_followed(tmp_path: Path) -> None:
    text = BASE + "limits: &l {load_s: 7}\nlabels: {a: b}\noutput:\n  <<: {max_tokens: 5}\n  mode: natural\n"
    config = load_campaign_file(write(tmp_path, text)).plan.experiments[0].config
    assert (config.output.max_tokens, config.output.mode, config.limits.load_s) == (5, "natural", 7)


def test_a_date_is_the_text_that_was_written(tmp_path: Path) -> None:
    assert load_campaign_file(write(tmp_path, BASE + "labels: {day: 2026-01-02}\n")).spec.labels == {
        "day": "2026-01-02"
    }


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("010", 10),
        ("1e-3", 0.001),
        ("1E5", 1e5),
        ("-.5", -0.5),
        ("3.", 3.0),
        ("0x1F", 31),
        ("0o17", 15),
        ("1:30", "1:30"),
        ("NO", "NO"),
        ("off", "off"),
        ("True", True),
        ("1_000", "1_000"),
        ("v1.2", "v1.2"),
        ("e5", "e5"),
        ("~", None),
    ],
)
def test_numbers_and_truth_are_those_of_yaml_1_2(tmp_path: Path, written: str, value: object) -> None:
    assert parse_value(written) == value
    found = load_campaign_file(write(tmp_path, f"{BASE}metadata: {{x: {written}}}\n")).spec.metadata["x"]
    assert (found, type(found)) == (value, type(value))


def test_json_may_have_tabs_and_characters_in_halves(tmp_path: Path) -> None:
    labels = r'{"a": "\ud83d\ude00", "b": "\\ud83d\\ude00"}'
    text = f'{{\n\t"backend": "simulated",\n\t"model": "m",\n\t"labels": {labels},\n'
    loaded = load_campaign_file(write(tmp_path, text + '\t"output": {"max_tokens": 1E1}\n}\n', "c.json"))
    assert loaded.spec.labels == {"a": "\U0001f600", "b": r"\ud83d\ude00"}
    assert loaded.plan.experiments[0].config.output.max_tokens == 10
    (problem,) = problems(write(tmp_path, text + '\t"output": {"max_tokens": 0}\n}\n', "c.json"))
    assert problem.startswith("c.json:5: output.max_tokens: ")
    assert problems(write(tmp_path, '{"model": "\\ud83d"}', "c.json"))[0].startswith("c.json:1: ")


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(st.characters(exclude_categories=["Cs"])),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=3)
        ),
        max_leaves=8,
    ),
    st.sampled_from([None, 1, "\t"]),
    st.booleans(),
)
def test_json_is_read_as_json(
    tmp_path_factory: pytest.TempPathFactory, value: object, indent: int | str | None, ascii_only: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_text(json.dumps({"x": value}, indent=indent, ensure_ascii=ascii_only), encoding="utf-8")
    assert read_document(path).values == {"x": value}


def test_the_command_line_goes_before_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, BASE + "name: a\nsweep: {simulated.batch_size: [1, 8]}\n")
    overrides = (
        "simulated.batch_size=3",
        "execution.cycles=2",
        "model.revision=main",
        "sweep.output.max_tokens=[1, 2]",
    )
    loaded = load_campaign_file(path, name="b", overrides=overrides)
    assert loaded.spec.name == "b"
    assert [one.varied for one in loaded.plan.experiments] == [{"output.max_tokens": 1}, {"output.max_tokens": 2}]
    config = loaded.plan.experiments[0].config
    assert config.simulated is not None
    assert (config.simulated.batch_size, config.model.revision, len(loaded.plan.runs)) == (3, "main", 4)


@pytest.mark.parametrize(
    ("written", "value"),
    [("8", 8), ("[1, 2]", [1, 2]), ("bfloat16", "bfloat16"), ("null", None), ("", None), ("2026-01-02", "2026-01-02")],
)
def test_values_of_the_command_line_are_yaml(written: str, value: object) -> None:
    assert parse_value(written) == value


# --- prompts ----------------------------------------------------------------------------------------------------------


@pytest.mark.proves("prompts.file", "prompts.column", on="client")
def test_a_prompt_file_next_to_the_campaign_file_becomes_its_digest(tmp_path: Path) -> None:
    write(tmp_path, "one\n\ntwo\n", "p.txt")
    loaded = load_campaign_file(write(tmp_path, BASE + "prompts: {file: p.txt, sample_size: 1}\n"))
    digest = prompts_digest(("one", "two"))
    assert loaded.spec.experiment["prompts"] == {"sample_size": 1, "dataset": digest}
    assert [(one.name, one.sha256, one.prompts) for one in loaded.prompt_sets] == [("p.txt", digest, ("one", "two"))]
    assert loaded.plan.experiments[0].config.prompts.dataset == digest


@pytest.mark.proves("prompts.file", on="client")
def test_prompt_files_along_a_sweep_become_digests(tmp_path: Path) -> None:
    write(tmp_path, json.dumps({"q": "one"}), "a.jsonl")
    write(tmp_path, json.dumps({"q": "two"}), "b.jsonl")
    text = BASE + "prompts: {column: q}\nsweep: {prompts.file: [a.jsonl, b.jsonl]}\n"
    loaded = load_campaign_file(write(tmp_path, text))
    assert loaded.spec.sweep == {"prompts.dataset": [prompts_digest(("one",)), prompts_digest(("two",))]}
    text = BASE + "sweep: {prompts: [{file: a.jsonl, column: q}, {sample_size: 2}]}\n"
    loaded = load_campaign_file(write(tmp_path, text))
    assert loaded.spec.sweep == {"prompts": [{"dataset": prompts_digest(("one",))}, {"sample_size": 2}]}


@pytest.mark.parametrize(
    ("content", "name", "extra", "message"),
    [
        (None, "p.txt", "", "no file p.txt"),
        (b"\n", "p.txt", "", "p.txt: "),
        (b"a\n\xff\n", "p.txt", "", "p.txt:2: "),
        (b"{}\n", "p.jsonl", "", "'text'"),
        (b"{\n", "p.jsonl", "", "p.jsonl: line 1 "),
        (b"a\n", "p.txt", ", column: q", "prompts.column"),
        (b"x" * (4 * 2**20 + 1), "p.txt", "", "4096 KiB"),
    ],
)
def test_an_unusable_prompt_file_is_named_with_its_place(
    tmp_path: Path, content: bytes | None, name: str, extra: str, message: str
) -> None:
    if content is not None:
        write(tmp_path, content, name)
    path = write(tmp_path, f"{BASE}prompts:\n  file: {name}\n".replace(f"file: {name}", f"{{file: {name}{extra}}}"))
    (problem,) = problems(path)
    assert problem.startswith("c.yaml:")
    assert ": prompts.file: " in problem
    assert message in problem


def test_sweeping_the_column_without_its_file_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, BASE + "prompts: {file: p.jsonl}\nsweep: {prompts.column: [a, b]}\n")
    assert "c.yaml:4: prompts.column " in problems(path)[0]


@pytest.mark.proves("prompts.file", "prompts.column", on="client")
def test_prompt_files_are_replaced_wherever_they_are_named(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write(tmp_path, json.dumps({"q": f"{name}, q", "r": f"{name}, r"}), f"{name}.jsonl")
    digests = {(name, column): prompts_digest((f"{name}, {column}",)) for name in "ab" for column in "qr"}

    def loaded(text: str) -> list[tuple[str | None, int]]:
        configs = [one.config for one in load_campaign_file(write(tmp_path, BASE + text)).plan.experiments]
        return [(config.prompts.dataset, config.output.max_tokens) for config in configs]

    base = "prompts: {file: a.jsonl, column: q}\n"
    listed = "experiments: [{}, {prompts: {file: b.jsonl}}, {prompts: {column: r}}]\n"
    assert [one for one, _ in loaded(base + listed)] == [digests["a", "q"], digests["b", "q"], digests["a", "r"]]
    zipped = "{prompts.file: [a.jsonl, b.jsonl], prompts.column: [q, r], output.max_tokens: [1, 2]}"
    assert loaded(f"sweep: {{zip: [{zipped}]}}\n") == [(digests["a", "q"], 1), (digests["b", "r"], 2)]
    rows = (
        "sweep: {prompts.file: [a.jsonl, b.jsonl], output.max_tokens: [1, 2], "
        "exclude: [{prompts.file: b.jsonl, output.max_tokens: 1}], include: [{prompts.file: b.jsonl}]}\n"
    )
    a, b = digests["a", "q"], digests["b", "q"]
    assert loaded("prompts: {column: q}\n" + rows) == [(a, 1), (a, 2), (b, 2), (b, 128)]


# --- what is wrong ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (BASE + "outptu: {}\n", ["c.yaml:3: outptu: unknown key 'outptu'; did you mean 'output'?"]),
        (
            BASE + "simulated:\n  bacth_size: 4\n",
            ["c.yaml:4: simulated.bacth_size: unknown key 'bacth_size'; did you mean 'batch_size'?"],
        ),
        (
            BASE + "output:\n  max_tokens: many\nsweep:\n  simulated.batch_size: [1, -2]\n",
            ["c.yaml:4: output.max_tokens: ", "c.yaml:6: simulated.batch_size: "],
        ),
        (BASE + "execution:\n  cycles: 0\n", ["c.yaml:4: execution.cycles: "]),
        ("backend: simulated\n", ["c.yaml: model: 'model' is required; add it"]),
        (
            BASE + "prompts: {builtin: nope}\n",
            ["c.yaml:3: prompts.builtin: "],
        ),
        (
            BASE + "experiments:\n  - {name: a}\n  - output:\n      max_tokns: 3\n",
            ["c.yaml:6: experiments.1.output.max_tokns: unknown key 'max_tokns'; did you mean 'max_tokens'?"],
        ),
        (BASE + "sweep: {output.max_tokens: []}\n", ["c.yaml:3: sweep.output.max_tokens "]),
        (BASE + "labels: {a: !!int b}\n", ["c.yaml:3: 'b' "]),
        (BASE + "limits: {<<: 3}\n", ["c.yaml:3: `<<` "]),
        (BASE + "model: again\n", ["c.yaml:3: key 'model' "]),
        (BASE + "1: x\n", ["c.yaml:3: key '1' "]),
        (BASE + "labels: !!python/object:os.system {}\n", ["c.yaml:3: tag !!python/object:os.system "]),
        (BASE + "labels: !!set {a}\n", ["c.yaml:3: tag !!set "]),
        (BASE + "decoding: {temperature: .nan}\n", ["c.yaml:3: .nan "]),
        (BASE + "labels: {a: [}\n", ["c.yaml:3: "]),
        (BASE + 'labels: {a: "\\uD800"}\n', ["c.yaml:3: "]),
        ("- a\n", ["c.yaml:1: "]),
        ("", ["c.yaml is empty"]),
        ("a: 1\nb: \x01\n", ["c.yaml:2: character U+0001 "]),
        (b"model: \xff\n", ["c.yaml:1: "]),
        ("a: " + "[" * 100 + "]" * 100, ["c.yaml:1: values are nested"]),
        ("a: " + "[" * 50_000, ["c.yaml: values are nested"]),
        ("a: &a [*a]\n", ["c.yaml:1: values are nested"]),
        ("\nx: " + "9" * 5000 + "\n", ["c.yaml:2: a number of 5000 digits"]),
        ("#" * (2**20 + 1), ["c.yaml is larger than 1024 KiB"]),
    ],
)
def test_each_problem_is_a_sentence_with_its_place(tmp_path: Path, text: str | bytes, expected: list[str]) -> None:
    found = problems(write(tmp_path, text))
    assert len(found) == len(expected), found
    for problem, begin in zip(found, expected, strict=True):
        assert problem.startswith(begin), problem
        assert "\n" not in problem


def test_problems_of_every_kind_are_reported_at_once(tmp_path: Path) -> None:
    """Unknown keys, invalid values of the campaign, of the base and of listed experiments, and files."""
    text = (
        "modle: m\nbackend: simulated\nlabls: {a: b}\nexecution: {cycles: 0}\n"
        "output: {mode: natrual, max_tokens: 0}\ntraffic: {mode: open}\nprompts: {file: no.txt}\n"
        "experiments:\n  - {name: a, outptu: {}}\n  - {prompts: {file: neither.txt}}\n"
    )
    expected = [
        "c.yaml:1: modle: unknown key 'modle'; did you mean 'model'?",
        "c.yaml:3: labls: unknown key 'labls'; did you mean 'labels'?",
        "c.yaml:4: execution.cycles: ",
        "c.yaml:5: output.max_tokens: ",
        "c.yaml:5: output.mode: ",
        "c.yaml:9: experiments.0.outptu: unknown key 'outptu'; did you mean 'output'?",
        "c.yaml:10: prompts.file: there is no file neither.txt",
        "c.yaml:7: prompts.file: there is no file no.txt",
    ]
    for more in ([], ["c.yaml:11: sweep: "]):
        found = problems(write(tmp_path, text + ("sweep: [1]\n" if more else "")))
        assert len(found) == len(expected + more)
        assert [begin for begin in expected + more if not any(one.startswith(begin) for one in found)] == []


def test_what_the_sweep_may_settle_is_not_reported_before_it_can_be_read(tmp_path: Path) -> None:
    """A rule between keys, and a key that is missing."""
    base = "backend: simulated\ntraffic: {mode: open}\n"
    found = problems(write(tmp_path, base + "sweep: {model: [a], traffic.rate_per_s: [1], outptu: [1]}\n"))
    assert [one.split(": ")[0:2] for one in found] == [["c.yaml:3", "sweep.outptu"]]
    assert load_campaign_file(write(tmp_path, base + "sweep: {model: [a], traffic.rate_per_s: [1]}\n")).plan.runs


def test_a_file_next_to_its_digest_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "one\n", "p.txt")
    path = write(tmp_path, BASE + f"prompts: {{file: p.txt, dataset: '{'0' * 64}'}}\n")
    assert [one.split(": ")[0:2] for one in problems(path)] == [["c.yaml:3", "prompts"]]


def test_a_row_of_a_group_may_name_no_file(tmp_path: Path) -> None:
    write(tmp_path, "one\n", "p.txt")
    zipped = "sweep: {zip: [{prompts.file: [null, p.txt], output.max_tokens: [1, 2]}]}\n"
    configs = [
        one.config.prompts.dataset for one in load_campaign_file(write(tmp_path, BASE + zipped)).plan.experiments
    ]
    assert configs == [None, prompts_digest(("one",))]


def test_of_thousands_of_problems_the_first_are_reported(tmp_path: Path) -> None:
    for begin in ("", "output:\n"):
        text = BASE + begin + "".join(f"  k{number}: 1\n" if begin else f"k{number}: 1\n" for number in range(3000))
        found = problems(write(tmp_path, text))
        assert len(found) == MOST_PROBLEMS + 1
        assert found[-1] == "c.yaml: there are more problems; correct these first"


def test_an_alias_bomb_is_refused_before_it_goes_off(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    assert "too many values" in problems(write(tmp_path, "\n".join(lines)))[0]


def test_a_bomb_of_long_texts_is_refused(tmp_path: Path) -> None:
    text = f"a: &a {'x' * 500_000}\nb: [{', '.join(['*a'] * 100)}]\n"
    assert "too many values" in problems(write(tmp_path, text))[0]


def test_a_toml_file_is_refused_with_the_formats_that_are_read(tmp_path: Path) -> None:
    (problem,) = problems(write(tmp_path, 'model = "m"\n', "c.toml"))
    assert problem.startswith("c.toml: ")
    assert "YAML or JSON" in problem


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("nonsense", "--set nonsense: "),
        ("a..b=1", "--set a..b=1: "),
        ("output.max_tokens=[", "--set output.max_tokens: '[' "),
        ("backend.x=1", "--set backend.x: 'backend' "),
        ("output.max_tokens=-1", "--set output.max_tokens: output.max_tokens: "),
    ],
)
def test_problems_of_the_command_line_name_the_option(tmp_path: Path, override: str, message: str) -> None:
    assert message in problems(write(tmp_path, BASE), overrides=(override,))[0]


def test_a_missing_file_and_a_folder_are_distinguished(tmp_path: Path) -> None:
    assert "no.yaml" in problems(tmp_path / "no.yaml")[0]
    with pytest.raises(FileError, match="is not a file"):
        load_campaign_file(tmp_path)


@given(st.binary(max_size=200))
def test_no_bytes_get_past_the_reader_as_anything_but_a_file_error(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    for suffix in ("yaml", "json"):
        path = tmp_path_factory.getbasetemp() / f"any.{suffix}"
        path.write_bytes(content)
        with pytest.raises(FileError):
            load_campaign_file(path)
