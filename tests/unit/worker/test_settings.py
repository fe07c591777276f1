"""The worker's settings: what is given, then LEM_…, then defaults; and its command line."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from pydantic import ValidationError

from lem_domain.backends.registry import BackendName
from lem_worker.daemon.settings import WorkerSettings
from lem_worker.main import main


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("LEM_")]:
        monkeypatch.delenv(name)


def settings(**given: object) -> WorkerSettings:
    return WorkerSettings(backend=BackendName.SIMULATED, **given)  # type: ignore[arg-type]


def test_what_is_given_comes_before_the_environment_and_that_before_the_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert settings().server == "http://127.0.0.1:8420"
    monkeypatch.setenv("LEM_SERVER", "http://environment")
    assert settings().server == "http://environment"
    assert settings(server="http://given").server == "http://given"


def test_variables_of_other_programs_are_not_taken_for_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVER", "http://elsewhere")
    monkeypatch.setenv("TOKEN_FILE", "elsewhere")
    assert settings().server == "http://127.0.0.1:8420"
    assert settings().token_file.name == "owner.token"


def test_folders_follow_the_data_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert settings().token_file == tmp_path / "lem" / "owner.token"
    monkeypatch.setenv("LEM_DATA_DIR", str(tmp_path / "here"))
    assert settings().token_file == tmp_path / "here" / "owner.token"
    assert settings().state_folder == tmp_path / "here" / "workers" / "simulated"
    assert settings(state_dir=tmp_path).state_folder == tmp_path


def test_every_other_option_has_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"NAME": "n", "DEVICES": "3", "MAX_RUNS": "2", "UNTIL_IDLE": "1", "KILL_GRACE_S": "0.5", "CACHE_DIR": "c"}
    given["IDLE_CHECK"] = "false"
    for name, value in given.items():
        monkeypatch.setenv(f"LEM_WORKER_{name}", value)
    read = settings()
    assert (read.name, read.devices, read.max_runs, read.until_idle) == ("n", 3, 2, True)
    assert (read.kill_grace_s, read.cache_dir, read.idle_check) == (0.5, Path("c"), False)


def test_an_unknown_backend_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEM_WORKER_BACKEND", "quark")
    with pytest.raises(ValidationError):
        WorkerSettings()  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--backend", "simulated", "--token-file", "none"], 1, "the token file none can't be read"),
        (["--backend", "simulated", "--devices", "0"], 2, "--devices: Input should be greater"),
        ([], 2, "--backend: Field required"),
    ],
)
def test_a_wrong_command_line_is_reported_in_one_line(
    arguments: list[str], code: int, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["run", *arguments])
    assert ended.value.code == code
    assert says in capsys.readouterr().err
