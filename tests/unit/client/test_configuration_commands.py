"""`lemctl config`, `presets` and `backends`, and what a plan says of merged and refused combinations; no server."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from lem_client.cli.commands.config import provenance_line
from lem_client.cli.main import main
from lem_domain.config.presets import builtin_presets
from lem_domain.config.provenance import ResolvedValue, Source
from lem_domain.config.schema import campaign_file_schema

BASE = "backend: simulated\nmodel: builtin:tiny-llama\n"


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as caught:
        main([*map(str, arguments), "--server", "http://127.0.0.1:9"])
    output = capsys.readouterr()
    assert isinstance(caught.value.code, int)
    return caught.value.code, output.out, output.err


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lem_domain.retries.RetryPolicy.delay_s", lambda *_: 0.0)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "c.yaml"
    path.write_text(BASE + "presets: [quick]\nsweep:\n  output.max_tokens: [4, 8, 4, 0]\n")
    return path


def test_the_schema_is_printed_for_editors(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "config", "schema")
    assert (code, json.loads(out)) == (0, campaign_file_schema())


def test_files_are_validated_with_every_problem_of_each(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    good, bad = tmp_path / "good.yaml", tmp_path / "bad.yaml"
    good.write_text(BASE + "execution: {cycles: 3}\n")
    bad.write_text(BASE + "outptu: {}\nlimts: {}\n")
    code, out, err = run(capsys, "config", "validate", good, bad)
    assert code == 2
    assert out == f"{good}: 1 experiments, 3 runs\n"
    assert [line.split(": ")[1] for line in err.splitlines()] == [f"{bad}:3", f"{bad}:4"]
    code, out, _ = run(capsys, "config", "validate", good, "--json")
    assert (code, json.loads(out)) == (0, [{"file": str(good), "problems": [], "experiments": 1, "runs": 3}])


def test_every_value_is_shown_with_its_origin(capsys: pytest.CaptureFixture[str], file: Path) -> None:
    shown = run(capsys, "config", "show", file, "--provenance", "--set", "output.max_tokens=8")[1]
    rows = {line.split()[0]: line.split(maxsplit=2)[2] for line in shown.splitlines() if len(line.split()) > 2}
    assert rows["output.max_tokens"] == "command line: --set output.max_tokens"
    assert rows["backend"] == f"file: {file}:1"
    assert rows["window.min_duration_s"] == "preset: quick"
    assert rows["warmup.cv_threshold"] == "default"
    code, out, _ = run(capsys, "config", "show", file, "--provenance", "--set", "output.max_tokens=8", "--json")
    (one,) = json.loads(out)["experiments"]
    assert code == 0
    assert one["provenance"]["backend"] == {"value": "simulated", "source": "file", "detail": f"{file}:1"}


def test_each_source_has_its_colour() -> None:
    lines = [provenance_line(ResolvedValue("a.b", 1, source, "")) for source in Source]
    assert len({line.style for line in lines}) == len(Source)
    piped = Console(width=80, force_terminal=False)
    with piped.capture() as captured:
        piped.print(lines[0])
    assert "\x1b" not in captured.get()


def test_a_plan_reports_what_is_merged_and_what_is_refused(capsys: pytest.CaptureFixture[str], file: Path) -> None:
    code, out, err = run(capsys, "plan", file)
    assert code == 2
    assert (
        "1 combinations are the same as an earlier one and are measured once:\n  max_tokens=4 is max_tokens=4\n" in out
    )
    assert "1 combinations are refused:\n" in out
    assert f"  max_tokens=0: {file}:5: output.max_tokens: input should be greater than or equal to 1, not 0\n" in out
    assert err.startswith("error: refused combinations stop the campaign; correct them, or set on_refused: skip")
    code, out, err = run(capsys, "plan", file, "--set", "on_refused=skip")
    assert (code, err) == (0, "")
    assert "2 experiments, 2 runs" in out
    refused = run(capsys, "submit", file)
    assert (refused[0], refused[2].count("error: ")) == (2, 1)


def test_presets_are_listed_and_shown(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "presets")
    assert code == 0
    assert all(name in out for name in builtin_presets())
    assert "min_duration_s: 2" in run(capsys, "presets", "quick")[1]
    assert [one["name"] for one in json.loads(run(capsys, "presets", "--json")[1])] == list(builtin_presets())
    assert run(capsys, "presets", "fast")[2].startswith("error: there is no preset 'fast'; choose one of deterministic")


def test_backends_are_listed_and_their_keys_shown(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "backends", "--json")
    told = {one["name"]: one for one in json.loads(out)}
    assert code == 0
    assert told["simulated"]["workers"] is None, "nobody could be asked"
    assert told["pytorch"]["keys"] >= 3
    assert "not known" in run(capsys, "backends")[1]
    shown = run(capsys, "backends", "pytorch")[1]
    assert "pytorch.batch_size" in shown
    assert "torch.set_num_threads" in shown
    keys = json.loads(run(capsys, "backends", "simulated", "--json")[1])
    assert {"simulated.power_w", "simulated.fail.at"} <= {key["path"] for key in keys}
