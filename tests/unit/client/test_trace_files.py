"""A trace of arrivals beside a campaign file."""

from __future__ import annotations

from pathlib import Path

import pytest

from lem_client.errors import FileError
from lem_client.files.campaign_file import load_campaign_file
from lem_domain.prompt_sets import prompts_digest

LINES = ("0", "0.5", "2")


def campaign(folder: Path, text: str) -> Path:
    (folder / "day.txt").write_text("\n".join(LINES) + "\n")
    path = folder / "c.yaml"
    path.write_text(f"backend: simulated\nmodel: m\n{text}")
    return path


@pytest.mark.proves("traffic.trace_file", on="client")
def test_a_trace_file_is_submitted_as_its_digest_and_uploaded(tmp_path: Path) -> None:
    path = campaign(tmp_path, "traffic:\n  mode: open\n  arrivals: trace\n  trace_file: day.txt\n")
    loaded = load_campaign_file(path)
    [uploaded] = loaded.prompt_sets
    assert (uploaded.name, uploaded.prompts, uploaded.sha256) == ("day.txt", LINES, prompts_digest(LINES))
    [one] = loaded.plan.experiments
    assert one.config.traffic.trace == uploaded.sha256
    assert one.config.traffic.trace_file is None


@pytest.mark.proves("traffic.trace_file", on="client")
def test_trace_files_can_be_swept(tmp_path: Path) -> None:
    (tmp_path / "night.txt").write_text("1\n9\n")
    base = "traffic: {mode: open, arrivals: trace}\nsweep:\n  traffic.trace_file: [day.txt, night.txt]\n"
    loaded = load_campaign_file(campaign(tmp_path, base))
    assert len({one.config.traffic.trace for one in loaded.plan.experiments}) == 2
    assert [one.name for one in loaded.prompt_sets] == ["day.txt", "night.txt"]


OTHERS = {
    "a zip group": ("sweep: {zip: [{traffic.trace_file: [day.txt, sub/night.txt], output.max_tokens: [1, 2]}]}", 2),
    "rows beside the product": (
        "sweep: {output.max_tokens: [1], "
        "include: [{traffic.trace_file: sub/night.txt}, {traffic.trace_file: day.txt}]}",
        3,
    ),
    "rows left out": (
        "sweep: {traffic.trace_file: [day.txt, sub/night.txt], output.max_tokens: [1, 2], "
        "exclude: [{traffic.trace_file: day.txt, output.max_tokens: 1}]}",
        3,
    ),
    "listed experiments": ("experiments: [{}, {traffic: {trace_file: sub/night.txt}}]", 2),
    "a file that is extended": ("_extends: sub/base.yaml\nexperiments: [{}, {traffic: {trace_file: day.txt}}]", 2),
}


@pytest.mark.proves("traffic.trace_file", on="client")
@pytest.mark.parametrize(("text", "experiments"), OTHERS.values(), ids=OTHERS)
def test_trace_files_are_replaced_wherever_they_are_named(tmp_path: Path, text: str, experiments: int) -> None:
    (tmp_path / "lem.toml").touch()
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "night.txt").write_text("1\n9\n")
    named = "traffic: {mode: open, arrivals: trace, trace_file: NAME}\n"
    (tmp_path / "sub" / "base.yaml").write_text(named.replace("NAME", "night.txt"))
    own = "" if "_extends" in text else named.replace("NAME", "day.txt")
    loaded = load_campaign_file(campaign(tmp_path, f"{own}{text}\n"))
    configs = [one.config.traffic for one in loaded.plan.experiments]
    assert len(configs) == experiments
    assert {one.trace for one in configs} == {prompts_digest(LINES), prompts_digest(("1", "9"))}
    assert {one.trace_file for one in configs} == {None}
    assert {one.sha256 for one in loaded.prompt_sets} == {one.trace for one in configs}


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [("bad.txt", "0\nlater\n", "line 2 of the trace is 'later'"), ("none.txt", None, "none.txt")],
)
def test_a_trace_that_can_not_be_used_is_reported_with_its_place(
    tmp_path: Path, name: str, content: str | None, says: str
) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    path = campaign(tmp_path, f"traffic:\n  mode: open\n  arrivals: trace\n  trace_file: {name}\n")
    with pytest.raises(FileError) as caught:
        load_campaign_file(path)
    assert says in str(caught.value)
    assert "c.yaml:6: traffic.trace_file" in str(caught.value)
