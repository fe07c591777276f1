"""Prompts of a dataset, read by the real library from a folder of Parquet files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from factories.fake_server import FakeServer
from lem_domain.config.prompt_sources import HuggingFacePrompts
from lem_domain.evidence.streams import StreamName
from lem_domain.prompt_sets import prompts_digest
from lem_worker.daemon import huggingface_prompts
from lem_worker.daemon.process_start import ProcessModules


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A dataset of two subsets, one of them with two splits."""
    for subset, split, texts in (
        ("small", "train", ["one", "two", "three"]),
        ("small", "test", ["four"]),
        ("other", "train", ["five"]),
    ):
        file = tmp_path / "set" / subset / f"{split}.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"question": texts, "number": list(range(len(texts)))}), file)
    (tmp_path / "set" / "README.md").write_text(
        "---\nconfigs:\n"
        "- config_name: small\n  data_files:\n  - {split: train, path: small/train.parquet}\n"
        "  - {split: test, path: small/test.parquet}\n"
        "- config_name: other\n  data_files:\n  - {split: train, path: other/train.parquet}\n---\n"
    )
    return tmp_path / "set"


def ask(
    folder: Path, cache: Path, most: str = "", path: str | None = None, **source: Any
) -> subprocess.CompletedProcess[str]:
    python_path = {} if path is None else {"PYTHONPATH": path}
    wanted = HuggingFacePrompts.model_validate({"dataset": str(folder), "column": "question", **source})
    return subprocess.run(
        [sys.executable, "-m", "lem_worker.daemon.huggingface_prompts", wanted.model_dump_json(), most],
        env={**os.environ, "HF_HOME": str(cache), "HF_HUB_OFFLINE": "1", "LEM_PARENT": str(os.getpid()), **python_path},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.proves(
    "prompts.huggingface.dataset",
    "prompts.huggingface.subset",
    "prompts.huggingface.split",
    "prompts.huggingface.column",
    on="datasets 5.2",
)
@pytest.mark.parametrize(
    ("source", "most", "texts"),
    [
        ({"subset": "small"}, "", ["one", "two", "three"]),
        ({"subset": "small"}, "2", ["one", "two"]),
        ({"subset": "small", "split": "test"}, "", ["four"]),
        ({"subset": "other"}, "", ["five"]),
    ],
)
def test_texts_come_from_the_subset_the_split_and_the_column(
    folder: Path, tmp_path: Path, source: dict[str, Any], most: str, texts: list[str]
) -> None:
    done = ask(folder, tmp_path / "cache", most, **source)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == texts


def test_a_library_that_aborts_the_end_of_its_interpreter_costs_nothing(folder: Path, tmp_path: Path) -> None:
    """As its threads do now and then on a busy machine: "terminate called without an active exception"."""
    (tmp_path / "sitecustomize.py").write_text("import atexit, os\natexit.register(os.abort)\n")
    done = ask(folder, tmp_path / "cache", path=str(tmp_path), subset="small")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == ["one", "two", "three"]


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ({"subset": "small", "column": "prompt"}, "no column 'prompt' (it has question, number)"),
        ({"subset": "small", "column": "number"}, "no text in column 'number'"),
        ({"subset": "small", "split": "dev"}, "dev"),
    ],
)
def test_what_is_not_there_is_said_in_a_sentence(
    folder: Path, tmp_path: Path, source: dict[str, Any], says: str
) -> None:
    done = ask(folder, tmp_path / "cache", **source)
    assert done.returncode == huggingface_prompts.NOT_FOUND
    assert says in done.stderr.strip().splitlines()[-1]


@pytest.mark.proves("prompts.huggingface.revision", on="datasets 5.2")
def test_the_revision_is_what_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked: dict[str, object] = {}

    def no_hub(name: str, *_: object, **options: object) -> object:
        asked.update(options, name=name)
        raise ConnectionError("no hub here")

    monkeypatch.setattr(datasets, "load_dataset", no_hub)
    with pytest.raises(ConnectionError):
        huggingface_prompts.read(HuggingFacePrompts(dataset="a/b", revision="abc"), None)
    assert (asked["name"], asked["revision"]) == ("a/b", "abc")


def test_without_the_library_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    monkeypatch.setattr(huggingface_prompts, "die_with_parent", lambda: None)
    assert (
        huggingface_prompts.main([HuggingFacePrompts(dataset="a/b").model_dump_json(), ""])
        == huggingface_prompts.LIBRARY_MISSING
    )
    assert "install llm-energy-measurement[datasets]" in capsys.readouterr().err


@pytest.mark.anyio
@pytest.mark.usefixtures("worker_environment")
@pytest.mark.proves("prompts.huggingface.dataset", on="datasets 5.2")
async def test_a_worker_sends_them_and_says_what_they_were(
    server: FakeServer, work: Callable[..., Coroutine[Any, Any, None]], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(folder.parent / "cache"))
    source = {"dataset": str(folder), "subset": "small", "column": "question"}
    attempt = server.enqueue(
        prompts={"huggingface": source, "sample_size": 2, "order": "longest_first"},
        output={"max_tokens": 2},
        window={"min_duration_s": 0},
        warmup={"enabled": False},
    )
    await work(modules=ProcessModules())
    assert attempt in server.completed, server.ended
    assert len(server.rows(attempt, "rank-0", StreamName.REQUESTS)) == 2
    known = server.started[attempt].environment["prompts"]
    assert known == {
        "dataset": str(folder),
        "sha256": prompts_digest(("one", "two", "three")),
        "sent": 2,
        "sent_sha256": prompts_digest(("three", "one")),
    }
