"""What an attempt was given is told by digests that anybody can compute again."""

from __future__ import annotations

import hashlib
from typing import Any

from pydantic.types import JsonValue

from lem_domain.config.experiment import ExperimentConfig
from lem_domain.prompt_sets import load_builtin_prompts, prompts_digest
from lem_worker.daemon.input_digests import input_facts, tokenizer_digest

FILES = {"model.safetensors": "1" * 64, "tokenizer.json": "2" * 64, "config.json": "3" * 64, "merges.txt": "4" * 64}


def config(**values: Any) -> ExperimentConfig:
    return ExperimentConfig.model_validate({"model": "m", "backend": "simulated", **values})


def prompts_of(facts: dict[str, JsonValue]) -> dict[str, JsonValue]:
    found = facts["prompts"]
    assert isinstance(found, dict)
    return found


def test_the_set_and_what_is_sent_of_it_have_their_own_digests() -> None:
    facts = input_facts(config(), sent=("c", "a"), source={}, model_files={})
    builtin = prompts_digest([prompt.text for prompt in load_builtin_prompts("general-v1")])
    assert prompts_of(facts) == {"sha256": builtin, "sent": 2, "sent_sha256": prompts_digest(("c", "a"))}
    uploaded = input_facts(config(prompts={"dataset": "ab" * 32}), sent=("a",), source={}, model_files={})
    assert prompts_of(uploaded)["sha256"] == "ab" * 32


def test_prompts_that_the_server_does_not_hold_say_where_they_came_from() -> None:
    hub = config(prompts={"huggingface": {"dataset": "org/set"}})
    facts = input_facts(hub, sent=("a",), source={"dataset": "org/set", "sha256": "cd" * 32}, model_files={})
    assert prompts_of(facts) == {
        "dataset": "org/set",
        "sha256": "cd" * 32,
        "sent": 1,
        "sent_sha256": prompts_digest(("a",)),
    }
    made = input_facts(config(prompts={"synthetic": {"prompt_tokens": 8}}), sent=(), source={}, model_files={})
    assert prompts_of(made)["sent"] is None
    assert prompts_of(made)["reason"] == "each rank makes them with its own tokenizer"


def test_every_seed_is_reported() -> None:
    facts = input_facts(
        config(
            prompts={"order": "shuffled", "seed": 7},
            decoding={"temperature": 1, "seed": 8},
            traffic={"mode": "open", "rate_per_s": 1, "seed": 9},
        ),
        sent=("a",),
        source={},
        model_files={},
    )
    assert facts["seeds"] == {"prompts.seed": 7, "decoding.seed": 8, "traffic.seed": 9}


def test_the_tokenizer_is_its_files_and_no_other() -> None:
    lines = f"{'4' * 64}  merges.txt\n{'2' * 64}  tokenizer.json\n"
    assert tokenizer_digest(FILES) == hashlib.sha256(lines.encode()).hexdigest()
    assert tokenizer_digest({**FILES, "model.safetensors": "9" * 64}) == tokenizer_digest(FILES)
    assert tokenizer_digest({"config.json": "3" * 64}) is None


def test_where_there_are_no_files_it_says_why() -> None:
    hub = input_facts(config(backend="pytorch"), sent=("a",), source={}, model_files={})
    assert (hub["tokenizer_sha256"], hub["model_files"]) == (None, {})
    assert "named by its commit" in str(hub["model_files_reason"])
    local = input_facts(config(backend="pytorch"), sent=("a",), source={}, model_files=FILES)
    assert local["model_files_reason"] is None
    simulated = input_facts(config(), sent=("a",), source={}, model_files={})
    assert simulated["model_files_reason"] == "the simulated backend loads no model"
