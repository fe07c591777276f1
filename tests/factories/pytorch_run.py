"""The PyTorch backend in this process on a real, tiny model, and what one repetition of some prompts gave."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic.types import JsonValue

from lem_domain.config.experiment import ExperimentConfig
from lem_domain.evidence import PhaseName
from lem_worker.backends import create_backend
from lem_worker.backends.pytorch import PyTorchBackend
from lem_worker.process_protocol import RankJob
from lem_worker.prompts import fullest, requests_of
from lem_worker.recorder import Recorder, Sinks

TEXTS = (
    "The license of this program is",
    "Copyright",
    "You may",
    "This is a much longer prompt than all of the others, so that they are padded a lot",
    "Everyone is permitted to copy and distribute",
    "When we speak of free software",
    "A",
    "The precise terms and conditions follow",
)
TOKENS = 12


class Kept:
    """Rows and outputs in memory."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.ids: dict[int, list[int]] = {}

    def append(self, **columns: Any) -> None:
        self.rows.append(columns)

    def extend(self, **columns: Any) -> None:
        self.rows += [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    def add(self, prompt_index: int, token_ids: Sequence[int]) -> None:
        self.ids[prompt_index] = list(token_ids)


class Run:
    """What one repetition of the prompts gave."""

    def __init__(
        self,
        folder: Path,
        texts: Sequence[str] = TEXTS,
        *,
        assistant: Path | None = None,
        adapter: Path | None = None,
        **config: JsonValue,
    ) -> None:
        document: dict[str, Any] = {"model": "tiny", "precision": "float32", "output": {"max_tokens": TOKENS}, **config}
        self.config = ExperimentConfig.model_validate(document)
        job = RankJob(
            attempt_id="a",
            rank=0,
            world_size=1,
            config=self.config,
            model_path=str(folder),
            prompts=tuple(texts),
            spool="unused",
            assistant_path=None if assistant is None else str(assistant),
            adapter_path=None if adapter is None else str(adapter),
            devices=(),
        )
        backend = create_backend(self.config.backend)
        assert isinstance(backend, PyTorchBackend)
        self.backend = backend
        backend.load(job)
        assert backend._live is not None
        self.live = backend._live
        self.prompts = backend.prepare(list(enumerate(texts)))
        requests = requests_of(self.prompts, repetition=0, first_id=0, seed=self.config.decoding.seed)
        requests_table, token_table, outputs = Kept(), Kept(), Kept()
        recorder = Recorder(PhaseName.MEASURE, Sinks(requests_table, token_table, outputs))
        if backend.compiles():
            backend.compile(requests)
        self.batches = list(backend.batches(requests))
        for batch in self.batches:
            recorder.release(batch, recorder.clock())
            backend.run(batch, recorder)
            recorder.drain()
        self.requests, self.tokens, self.outputs = requests_table.rows, token_table.rows, outputs.ids
        self.facts = backend.facts()
        found = backend.effective_config(fullest(self.batches))
        self.effective = {parameter.name: parameter.effective for parameter in found.parameters}
        self.unconfirmed = [parameter.name for parameter in found.parameters if not parameter.confirmed]

    def generated(self, texts: Sequence[str] = TEXTS, **options: Any) -> list[list[int]]:
        """What transformers' own `generate` gives, rows ending where `eos_token_id` says (by default nowhere)."""
        tokenizer = self.live.tokenizer
        tokenizer.padding_side = "left"
        encoded = tokenizer(list(texts), return_tensors="pt", padding=True, return_token_type_ids=False)
        options = {"max_new_tokens": TOKENS, "do_sample": False, "eos_token_id": [-1], **options}
        rows = self.live.model.generate(**encoded, **options)[:, encoded["input_ids"].shape[1] :].tolist()
        ends = options["eos_token_id"]
        return [row[: next((place + 1 for place, token in enumerate(row) if token in ends), len(row))] for row in rows]

    def once_more(self) -> None:
        """Send all batches again; nothing of it is kept."""
        recorder = Recorder(PhaseName.MEASURE)
        for batch in self.batches:
            recorder.release(batch, recorder.clock())
            self.backend.run(batch, recorder)
            recorder.drain()

    @contextmanager
    def watching(self, look: Callable[[dict[str, Any]], None]) -> Iterator[None]:
        """Look at the arguments of every forward pass."""
        hook = self.live.model.register_forward_pre_hook(
            lambda _module, _positional, named: look(named), with_kwargs=True
        )
        try:
            yield
        finally:
            hook.remove()


def ending_at(folder: Path, target: Path, end_ids: Sequence[int]) -> Path:
    """The same model, whose sequences end at other tokens."""
    shutil.copytree(folder, target)
    path = target / "generation_config.json"
    settings = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**settings, "eos_token_id": list(end_ids)}))
    return target


def copied(model: Path, target: Path, **changes: Any) -> Path:
    """The same model with other settings."""
    shutil.copytree(model, target)
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**config, **changes}))
    return target
