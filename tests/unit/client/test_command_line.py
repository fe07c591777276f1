"""The command line itself: options anywhere, exit codes, one line per error."""

from __future__ import annotations

import pytest

from lem_client.cli.main import hoisted, main


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    output = capsys.readouterr()
    assert isinstance(caught.value.code, int)
    return caught.value.code, output.out, output.err


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        (["list", "--json"], ["--json", "list"]),
        (["list", "--server", "http://a", "-q"], ["--server", "http://a", "-q", "list"]),
        (["--debug", "list", "--server=http://a"], ["--debug", "--server=http://a", "list"]),
        (["run", "--", "--json"], ["run", "--", "--json"]),
        (["list", "--server"], ["--server", "list"]),
    ],
)
def test_global_options_may_be_anywhere(given: list[str], taken: list[str]) -> None:
    assert hoisted(given) == taken


def test_the_version_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "--version")
    assert (code, out.startswith("lemctl ")) == (0, True)


@pytest.mark.parametrize(
    "command",
    ["up", "run", "plan", "submit", "watch", "list", "show", "results", "cancel", "workers", "datasets", "doctor"],
)
def test_every_command_teaches_with_an_example(capsys: pytest.CaptureFixture[str], command: str) -> None:
    code, out, _ = run(capsys, command, "--help")
    assert code == 0
    assert f"  lemctl {command}" in out


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["lst"], "'lst'"),
        (["run"], "'FILE'"),
        (["list", "--nope"], "--nope"),
        (["list", "--server", "nonsense"], "'nonsense'"),
        (["list", "--token-file", "/nonexistent/token"], "/nonexistent/token"),
        (["run", "/nonexistent.yaml"], "/nonexistent.yaml"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(
    capsys: pytest.CaptureFixture[str], arguments: list[str], named: str
) -> None:
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert named in err
    assert err.count("\n") == 1


def test_a_server_that_is_down_is_one_line_and_exit_code_1(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lem_domain.retries.RetryPolicy.delay_s", lambda *_: 0.0)
    code, _, err = run(capsys, "list", "--server", "http://127.0.0.1:9")
    assert code == 1
    assert err.startswith("error: ")
    assert "http://127.0.0.1:9" in err
    assert err.count("\n") == 1


def test_debug_shows_where_it_came_from(capsys: pytest.CaptureFixture[str]) -> None:
    _, _, err = run(capsys, "run", "/nonexistent.yaml", "--debug")
    assert "Traceback" in err
    assert err.splitlines()[-1].startswith("error: there is no file /nonexistent.yaml")
