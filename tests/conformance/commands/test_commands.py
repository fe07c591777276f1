"""What every command of `lemctl` has: help with an example, exit codes, one line per error, JSON and documentation."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from lem_client.cli.commands import Command, load_commands
from lem_client.cli.main import main

ROOT = Path(__file__).parents[3]
COMMANDS = {one.name: one for one in load_commands()}
ARGUMENTS = {
    "FILE": str(ROOT / "examples" / "quickstart.yaml"),
    "A": "nightly",
    "ID": "nightly",
    "RUN": f"run_{'1' * 32}",
    "WORKER": "bench-1",
}
NO_SERVER = "http://127.0.0.1:9"

every = pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    output = capsys.readouterr()
    assert isinstance(caught.value.code, int)
    return caught.value.code, output.out, output.err


def required(help_text: str) -> list[str]:
    """Values for the required arguments that a command's usage names."""
    usage = help_text.partition("\n\n")[0].partition("[OPTIONS]")[2]
    found = re.findall(r"(?<!\[)\{([A-Z]+)\}", usage)
    return [ARGUMENTS[name] for name in found]


@every
def test_its_help_says_what_it_does_and_ends_with_examples(
    capsys: pytest.CaptureFixture[str], command: Command
) -> None:
    code, out, _ = run(capsys, *command.name.split(), "--help")
    assert code == 0
    assert f"  lemctl {command.name}" in out
    first = (command.function.__doc__ or "").partition("\n")[0]
    assert first.endswith(".") and len(first) <= 116


@every
def test_wrong_usage_ends_with_2_and_one_line(capsys: pytest.CaptureFixture[str], command: Command) -> None:
    code, out, err = run(capsys, *command.name.split(), "--no-such-option")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("error: ")


@every
def test_without_a_server_it_prints_json_or_one_line_per_error(
    capsys: pytest.CaptureFixture[str], command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("lem_domain.retries.RetryPolicy.delay_s", lambda *_: 0.0)
    arguments = required(run(capsys, *command.name.split(), "--help")[1])
    if command.name == "up":  # would start a server; a data folder that can't exist ends it before
        arguments = ["--backend", "simulated", "--data-dir", "/dev/null/data"]
    if command.name == "export":
        arguments += ["--bundle", str(tmp_path / "x.tar")]
    if command.name == "import":
        arguments = [str(tmp_path / "missing.tar")]
    code, out, err = run(capsys, *command.name.split(), *arguments, "--json", "--server", NO_SERVER)
    assert "Missing argument" not in err
    assert code in (0, 1, 2)
    assert all(line.startswith(("error: ", "note: ")) for line in err.splitlines())
    assert out or err
    for line in out.splitlines():
        json.loads(line)


def test_the_documentation_has_every_command_and_its_json() -> None:
    text = (ROOT / "docs" / "client.md").read_text(encoding="utf-8")
    commands, json_table = text.partition("## JSON")[::2]
    rows = [line.partition(" | ")[0] for line in json_table.splitlines() if line.startswith("| `")]
    for name in COMMANDS:
        assert f"`lemctl {name}" in commands, name
        assert any(f"`{name}" in row for row in rows), name


def test_the_commands_come_in_the_order_of_use() -> None:
    names = list(COMMANDS)
    assert names[0] == "up"
    assert names.index("run") < names.index("results") < names.index("cancel") < names.index("doctor")
