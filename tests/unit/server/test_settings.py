"""Each key of the settings takes effect."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import ValidationError
from sqlalchemy.engine import make_url

from lem_server import logs
from lem_server.app import create_app
from lem_server.http.middleware import TrustedHosts, host_of
from lem_server.main import main
from lem_server.settings import LeaseTerms, Settings, default_data_dir


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for key in Settings.model_fields:
        monkeypatch.delenv(f"LEM_{key.upper()}", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)


@pytest.fixture
def _logging_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def test_every_key_is_read_from_its_environment_variable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    wanted = {
        "data_dir": (str(tmp_path / "d"), tmp_path / "d"),
        "database_url": ("postgresql://a@b/c", "postgresql://a@b/c"),
        "database_password_file": ("/run/secret", Path("/run/secret")),
        "host": ("0.0.0.0", "0.0.0.0"),
        "port": ("9000", 9000),
        "trusted_hosts": ('["lem.example"]', ("lem.example",)),
        "lease_ttl_s": ("7", 7.0),
        "lease_grace_s": ("0", 0.0),
        "beat_interval_s": ("2.5", 2.5),
        "log_level": ("debug", "debug"),
        "log_format": ("json", "json"),
    }
    assert set(wanted) == set(Settings.model_fields)
    for key, (value, _) in wanted.items():
        monkeypatch.setenv(f"LEM_{key.upper()}", value)
    settings = Settings()
    for key, (_, meant) in wanted.items():
        assert getattr(settings, key) == meant, key


def test_the_defaults_serve_this_machine_alone(tmp_path: Path) -> None:
    settings = Settings()
    assert (settings.host, settings.port, settings.database_url) == ("127.0.0.1", 8420, None)
    assert settings.trusted_hosts == ("localhost", "127.0.0.1", "[::1]")
    assert settings.data_dir == tmp_path / ".local/share/lem"
    assert settings.lease_terms == LeaseTerms(60, 300, 15)


def test_the_data_folder_follows_the_xdg_rules(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "share"))
    assert default_data_dir() == tmp_path / "share/lem"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("port", "-1"),
        ("port", "65536"),
        ("lease_ttl_s", "0"),
        ("lease_grace_s", "-1"),
        ("beat_interval_s", "0"),
        ("log_level", "loud"),
        ("log_format", "xml"),
    ],
)
def test_a_value_without_sense_is_refused_by_the_name_of_its_variable(
    key: str, value: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ValidationError):
        Settings.model_validate({key: value})
    monkeypatch.setenv(f"LEM_{key.upper()}", value)
    with pytest.raises(SystemExit) as ended:
        main(["serve"])
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith(f"lem-server: LEM_{key.upper()}: ")


def test_trusted_hosts_that_are_no_json_are_refused_in_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LEM_TRUSTED_HOSTS", "lem.example, other")
    with pytest.raises(SystemExit) as ended:
        main(["serve"])
    assert ended.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "LEM_TRUSTED_HOSTS" in line and "JSON" in line


def test_an_option_goes_before_the_environment(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LEM_PORT", "9000")
    with pytest.raises(SystemExit) as ended:
        main(["serve", "--port", "70000"])
    assert ended.value.code == 2
    assert "LEM_PORT" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("hosts", "host", "answered"),
    [
        (("lem.example",), "lem.example", True),
        (("LEM.example",), "lem.EXAMPLE:80", True),
        (("lem.example",), "www.lem.example", False),
        (("*.example",), "lem.example", True),
        (("*.example",), "example", False),
        (("*",), "anything", True),
        (("[::1]",), "[::1]:8420", True),
        (("localhost",), "", False),
    ],
)
def test_trusted_hosts_decide_who_is_answered(hosts: tuple[str, ...], host: str, answered: bool) -> None:
    assert TrustedHosts(lambda *_: None, hosts)._trusts(host_of(host)) is answered  # type: ignore[arg-type]


def test_the_application_has_the_hosts_of_its_settings() -> None:
    made = create_app(Settings(trusted_hosts=("lem.example",)), make_url("postgresql+asyncpg://nowhere/lem"))
    [hosts] = [one.kwargs["hosts"] for one in made.user_middleware if "hosts" in one.kwargs]
    assert hosts == ("lem.example",)


@pytest.mark.usefixtures("_logging_as_before")
def test_json_logs_are_one_object_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info", "json")
    try:
        raise ValueError("so\nwhat")
    except ValueError:
        logging.getLogger("lem_server.test").exception("it %s", "broke")
    [line] = capsys.readouterr().err.splitlines()
    entry = json.loads(line)
    assert (entry["level"], entry["logger"], entry["message"]) == ("error", "lem_server.test", "it broke")
    assert "ValueError" in entry["exception"] and entry["time"].endswith("+00:00")


@pytest.mark.usefixtures("_logging_as_before")
def test_text_logs_are_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info", "text")
    logging.getLogger("lem_server.test").warning("look")
    assert "WARNING lem_server.test: look" in capsys.readouterr().err


@pytest.mark.usefixtures("_logging_as_before")
def test_the_level_decides_what_is_logged(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("warning", "text")
    logging.getLogger("lem_server.test").info("quiet")
    logging.getLogger("lem_server.test").warning("loud")
    shown = capsys.readouterr().err
    assert "quiet" not in shown and "loud" in shown
