"""What changes the model itself: number formats, compilation, attention, adapters. Each shows in the live model, and
what this machine can't do is refused with what to install where."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pydantic.types import JsonValue

from factories.lora import aimed_elsewhere, make_lora
from factories.one_rank import TEXTS
from factories.pytorch_run import Run, copied
from lem_domain.evidence.streams import PhaseName
from lem_domain.states import FailureReason
from lem_worker.backends.pytorch import quantization as pytorch_quantization
from lem_worker.backends.pytorch.model import ModelRefused
from lem_worker.process.failures import BackendUnavailable, OptionRefused, failure_of

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def plain(model_folder: Path) -> Run:
    return Run(model_folder, TEXTS[:4], pytorch={"batch_size": 4})


def optioned(folder: Path, **settings: JsonValue) -> Run:
    return Run(folder, TEXTS[:4], pytorch={"batch_size": 4, **settings})


# --- quantization -----------------------------------------------------------------------------------------------------


@pytest.mark.proves("pytorch.quantization.load_in_8bit", on="transformers 5.23.0")
def test_eight_bits_by_bitsandbytes(model_folder: Path, plain: Run) -> None:
    run = optioned(model_folder, quantization={"load_in_8bit": True})
    assert run.live.model.get_memory_footprint() < 0.8 * plain.live.model.get_memory_footprint()
    assert run.live.model.model.layers[0].mlp.up_proj.weight.dtype is torch.int8
    assert run.outputs != plain.outputs
    assert run.effective["pytorch.quantization.load_in_8bit"] is True
    assert run.effective["pytorch.quantization.load_in_4bit"] is False
    assert run.unconfirmed == []


@pytest.mark.proves(
    "pytorch.quantization.load_in_4bit",
    "pytorch.quantization.compute_dtype",
    "pytorch.quantization.quant_type",
    on="transformers 5.23.0",
)
@pytest.mark.parametrize(("compute_dtype", "quant_type"), [("float32", "nf4"), ("bfloat16", "fp4")])
def test_four_bits_by_bitsandbytes(model_folder: Path, plain: Run, compute_dtype: str, quant_type: str) -> None:
    four: dict[str, JsonValue] = {"compute_dtype": compute_dtype, "quant_type": quant_type}
    run = optioned(model_folder, quantization={"load_in_4bit": True, **four})
    layer = run.live.model.model.layers[0].mlp.up_proj
    assert layer.compute_dtype is getattr(torch, compute_dtype)
    assert layer.weight.quant_state.quant_type == quant_type
    assert run.live.model.get_memory_footprint() < 0.7 * plain.live.model.get_memory_footprint()
    assert run.outputs != plain.outputs
    for key, value in four.items():
        assert run.effective[f"pytorch.quantization.{key}"] == value
    assert run.unconfirmed == []


@pytest.mark.proves("pytorch.quantization.torchao", on="transformers 5.23.0")
@pytest.mark.parametrize(
    ("scheme", "dtype"),
    [
        ("int8_weight_only", torch.int8),
        ("int8_dynamic_activation_int8_weight", torch.int8),
        ("float8_weight_only", torch.float8_e4m3fn),
    ],
)
def test_torchao(model_folder: Path, plain: Run, scheme: str, dtype: torch.dtype) -> None:
    run = optioned(model_folder, quantization={"torchao": scheme})
    assert run.live.model.model.layers[0].mlp.up_proj.weight.qdata.dtype is dtype
    logits, exact = (one.live.model(torch.tensor([plain.prompts[0].token_ids])).logits for one in (run, plain))
    assert not torch.equal(logits, exact)
    assert torch.nn.functional.cosine_similarity(logits.flatten(), exact.flatten(), dim=0) > 0.99
    assert run.effective["pytorch.quantization.torchao"] == scheme
    assert run.unconfirmed == []


@pytest.mark.parametrize(
    ("package", "quantization"),
    [("bitsandbytes", {"load_in_4bit": True}), ("torchao", {"torchao": "int8_weight_only"})],
)
def test_a_missing_package_is_named(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch, package: str, quantization: JsonValue
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        pytorch_quantization.importlib.util, "find_spec", lambda name: None if name == package else find(name)
    )
    with pytest.raises(BackendUnavailable, match=rf"needs the package {package}; install"):
        optioned(model_folder, quantization=quantization)


def test_random_weights_are_not_quantized(model_folder: Path) -> None:
    with pytest.raises(ModelRefused, match=r"made from a checkpoint and model\.weights is dummy; remove one"):
        Run(
            model_folder,
            TEXTS[:1],
            model={"id": "tiny", "weights": "dummy"},
            pytorch={"quantization": {"load_in_8bit": True}},
        )


@pytest.mark.slow
def test_torchaos_complaints_about_other_machines_stay_out_of_a_run_that_does_not_ask_for_it() -> None:
    """Transformers imports it wherever it is installed; only a new process imports anything."""
    script = (
        "import sys\n"
        "from lem_worker.backends.pytorch import log_filters\n"
        "with log_filters.importing(torchao_is_asked_for=sys.argv[1] == 'asked'):\n"
        "    from lem_worker.backends.pytorch import model\n"
        "assert 'torchao' in sys.modules\n"
    )
    said = {}
    for asked in ("asked", "not asked"):
        done = subprocess.run(
            [sys.executable, "-c", script, asked], capture_output=True, text=True, check=True, timeout=600
        )
        said[asked] = done.stdout + done.stderr
    assert "torchao" in said["asked"]
    assert said["not asked"] == ""


# --- products of float32 ----------------------------------------------------------------------------------------------


@pytest.mark.proves("pytorch.matmul_precision", on="transformers 5.23.0")
def test_products_in_lower_precision(model_folder: Path, tmp_path: Path) -> None:
    wide = copied(model_folder, tmp_path / "wide", hidden_size=512, intermediate_size=512)  # small products stay exact
    before = torch.get_float32_matmul_precision()
    try:
        logits = {}
        for precision in ("highest", "medium"):
            run = Run(
                wide,
                TEXTS[:1],
                model={"id": "wide", "weights": "dummy"},
                pytorch={"matmul_precision": precision},
            )
            assert torch.get_float32_matmul_precision() == precision
            assert run.effective["pytorch.matmul_precision"] == precision
            assert run.unconfirmed == []
            logits[precision] = run.live.model(torch.tensor([run.prompts[0].token_ids])).logits
    finally:
        torch.set_float32_matmul_precision(before)
    assert torch.nn.functional.cosine_similarity(*(one.flatten() for one in logits.values()), dim=0) > 0.99
    # Only a processor with bfloat16 products computes differently; elsewhere the setting is all there is to see.
    if torch.ops.mkldnn._is_mkldnn_bf16_supported():
        assert not torch.equal(logits["medium"], logits["highest"])


# --- compilation ------------------------------------------------------------------------------------------------------


def compiled(folder: Path, texts: tuple[str, ...] = TEXTS[:2], **settings: JsonValue) -> Run:
    return Run(folder, texts, output={"max_tokens": 4}, pytorch={"batch_size": len(texts), "torch_compile": settings})


@pytest.mark.proves(
    "pytorch.torch_compile.enabled",
    "pytorch.torch_compile.backend",
    "pytorch.torch_compile.fullgraph",
    on="transformers 5.23.0",
)
@pytest.mark.parametrize("backend", ["eager", pytest.param("aot_eager", marks=pytest.mark.slow)])
def test_what_is_compiled_runs_compiled_and_nothing_is_left_for_the_window(model_folder: Path, backend: str) -> None:
    run = compiled(model_folder, backend=backend, fullgraph=True)
    plain = Run(model_folder, TEXTS[:2], output={"max_tokens": 4}, pytorch={"batch_size": 2})
    assert run.outputs == plain.outputs
    counts = run.facts["compilation"]
    assert isinstance(counts, dict)
    graphs = counts["compiled_graphs"]
    assert isinstance(graphs, int)
    assert graphs >= 2  # prefill and decode have different shapes
    assert counts["graph_breaks"] == 0
    assert counts["compiled_graphs_in_window"] == 0
    assert run.effective["pytorch.torch_compile.enabled"] is True
    assert run.effective["pytorch.torch_compile.backend"] == backend
    assert run.unconfirmed == []
    assert plain.effective["pytorch.torch_compile.enabled"] is False
    assert "compilation" not in plain.facts


@pytest.mark.proves("pytorch.torch_compile.fullgraph", on="transformers 5.23.0")
def test_fullgraph_fails_where_a_graph_would_break(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.models.llama import modeling_llama

    forward = modeling_llama.LlamaMLP.forward

    def breaking(self: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
        torch._dynamo.graph_break()
        return forward(self, x)

    monkeypatch.setattr(modeling_llama.LlamaMLP, "forward", breaking)
    with pytest.raises(Exception, match="graph_break"):
        compiled(model_folder, TEXTS[:1], backend="eager", fullgraph=True)


@pytest.mark.slow
@pytest.mark.proves("pytorch.torch_compile.dynamic", on="transformers 5.23.0")
def test_dynamic_shapes_need_fewer_graphs(model_folder: Path) -> None:
    graphs = {}
    for dynamic in (True, False):
        run = compiled(model_folder, TEXTS[:1], backend="eager", dynamic=dynamic)
        assert run.effective["pytorch.torch_compile.dynamic"] is dynamic
        assert run.unconfirmed == []
        counts = run.facts["compilation"]
        assert isinstance(counts, dict)
        graphs[dynamic] = counts["compiled_graphs"]
    assert graphs[True] < graphs[False]


@pytest.mark.slow
@pytest.mark.proves("pytorch.torch_compile.backend", "pytorch.torch_compile.mode", on="transformers 5.23.0")
@pytest.mark.parametrize("mode", [None, "max-autotune-no-cudagraphs", "reduce-overhead", "max-autotune"])
def test_inductor_compiles_in_its_modes(model_folder: Path, mode: str | None) -> None:
    run = compiled(model_folder, TEXTS[:1], **({} if mode is None else {"mode": mode}))
    assert run.outputs == Run(model_folder, TEXTS[:1], output={"max_tokens": 4}).outputs
    assert run.effective["pytorch.torch_compile.backend"] == "inductor"
    assert run.effective["pytorch.torch_compile.mode"] == (mode or "default")
    counts = run.facts["compilation"]
    assert isinstance(counts, dict)
    assert counts["compiled_graphs_in_window"] == 0


# --- attention --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.proves("pytorch.attn_implementation", on="transformers 5.23.0")
def test_flex_attention(model_folder: Path, plain: Run) -> None:
    """One prompt at a time; torch 2.13 makes C++ for padded batches on the CPU that no compiler takes."""
    run = optioned(model_folder, attn_implementation="flex_attention", batch_size=1)
    assert run.outputs == plain.outputs
    assert run.effective["pytorch.attn_implementation"] == "flex_attention"
    assert run.unconfirmed == []
    with pytest.raises(
        OptionRefused, match=r"can't compile the code for pytorch\.attn_implementation flex_attention"
    ) as no:
        optioned(model_folder, attn_implementation="flex_attention")
    assert failure_of(no.value, PhaseName.WARMUP).reason is FailureReason.NOT_AS_REQUESTED
    assert str(no.value).endswith("set pytorch.batch_size to 1: on the CPU it fails for padded batches.")
    assert len(str(no.value)) < 400


@pytest.mark.parametrize("kind", ["flash_attention_2", "flash_attention_3"])
def test_flash_attention_is_refused_without_a_gpu(model_folder: Path, kind: str) -> None:
    with pytest.raises(BackendUnavailable, match=rf"{kind} needs an NVIDIA GPU and the package flash-attn.*or sdpa"):
        optioned(model_folder, attn_implementation=kind)


# --- adapters ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def adapter_folder(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_lora(model_folder, tmp_path_factory.mktemp("adapter"))


@pytest.mark.proves("model.adapter", on="transformers 5.23.0")
def test_an_adapter_changes_what_is_generated(model_folder: Path, plain: Run, adapter_folder: Path) -> None:
    run = Run(
        model_folder,
        TEXTS[:4],
        adapter=adapter_folder,
        model={"id": "tiny", "adapter": "./my-adapter"},
        pytorch={"batch_size": 4},
    )
    assert run.outputs != plain.outputs
    assert list(run.outputs.values()) == run.generated(TEXTS[:4])
    assert run.effective["model.adapter"] == "./my-adapter"
    assert run.unconfirmed == []


def test_an_adapter_of_another_model_is_refused(model_folder: Path, adapter_folder: Path, tmp_path: Path) -> None:
    other = aimed_elsewhere(adapter_folder, tmp_path / "other")
    with pytest.raises(ModelRefused, match=r"can't be loaded into tiny .* name one that was made for this model"):
        Run(model_folder, TEXTS[:1], adapter=other, model={"id": "tiny", "adapter": "other"})
