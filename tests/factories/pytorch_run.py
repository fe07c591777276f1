"""The PyTorch backend in this process on a real, tiny model, and what one repetition of some prompts gave."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from factories.one_rank import TEXTS, TOKENS, Window, effective_values, job, unconfirmed_names
from lem_domain.evidence.streams import PhaseName
from lem_worker.backends.create import create_backend
from lem_worker.backends.pytorch.backend import PyTorchBackend
from lem_worker.rank.prompts import batch_with_most_rows, requests_of
from lem_worker.rank.recorder import Recorder


class Run:
    """What one repetition of the prompts gave."""

    def __init__(
        self,
        folder: Path,
        texts: Sequence[str] = TEXTS,
        *,
        assistant: Path | None = None,
        adapter: Path | None = None,
        **config: Any,
    ) -> None:
        task = job(folder, texts, assistant=assistant, adapter=adapter, **config)
        self.config = task.config
        backend = create_backend(self.config.backend)
        assert isinstance(backend, PyTorchBackend)
        self.backend = backend
        backend.load(task)
        assert backend._live is not None
        self.live = backend._live
        self.prompts = backend.prepare(list(enumerate(texts)))
        requests = requests_of(self.prompts, repetition=0, first_id=0, seed=self.config.decoding.seed)
        window = Window()
        if backend.compiles():
            backend.compile(requests)
        self.batches = list(backend.batches(requests))
        self._send(window.recorder)
        self.requests, self.tokens, self.outputs = window.requests, window.tokens, window.outputs
        self.facts = backend.facts()
        found = backend.effective_config(batch_with_most_rows(self.batches))
        self.effective, self.unconfirmed = effective_values(found), unconfirmed_names(found)

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
        self._send(Recorder(PhaseName.MEASURE))

    def _send(self, recorder: Recorder) -> None:
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
