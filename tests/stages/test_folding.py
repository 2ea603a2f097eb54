"""Where SmoothQuant's scales go: folds that change nothing, and those that would, which are left."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stages import families, masks
from stages.families import Batch
from stages.quantize import smoothquant
from stages.quantize.folding import folds
from stages.quantize.wiring import wiring
from tests import tiny, zoo_sizes
from tests import tiny_encoder_decoders as encoder_decoders
from tests.recording import RecordingLog
from tests.tiny_causal import build


def model_and_batch(kind: str) -> tuple[Any, Any, Batch]:
    if kind in encoder_decoders.KINDS:
        model = encoder_decoders.build(kind)
        rows = encoder_decoders.rows(kind, model)
        return model, families.get(encoder_decoders.family(kind)), rows.take(torch.arange(4))
    ids_BT = torch.arange(1, 65).view(4, 16)
    model = tiny.build("mpt") if kind == "mpt" else build(kind)
    return model, families.get("causal_lm"), {"input_ids": ids_BT, "labels": ids_BT, "use": torch.ones_like(ids_BT)}


def outlying(model: Any, family: Any) -> None:
    """Weights of uneven columns, so that scales are far from 1."""
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for linear in family.prunable(model).values():
            linear.weight.mul_(2 ** torch.randn(linear.in_features, generator=draw))


def smoothed(
    model: Any,
    family: Any,
    batch: Batch,
    folder: Path,
    targets: Sequence[str] = (),
    stored: torch.dtype = torch.float32,
) -> tuple[smoothquant.Smoothing, RecordingLog]:
    log = RecordingLog(folder)
    names = list(targets) or list(family.prunable(model))
    return smoothquant.smooth_(model, family, names, [batch], 0.5, stored, log), log


def logits(model: Any, family: Any, batch: Batch) -> Tensor:
    with torch.no_grad():
        return model(**family.inputs(batch)).logits


def kinds(names: Sequence[str]) -> set[str]:
    """Of layers: the last two words, without numbers."""
    return {".".join(re.sub(r"\.\d+(?=\.|$)", "", name).split(".")[-2:]) for name in names}


ATTENTION, MLP = "self_attn.v_proj", "mlp.up_proj"
LLAMA = {"layers.input_layernorm", "layers.post_attention_layernorm", ATTENTION, MLP}
GEMMA = {"layers.input_layernorm", "layers.pre_feedforward_layernorm", ATTENTION, MLP}
PRODUCERS = {
    "llama_grouped": LLAMA,
    "gemma": LLAMA,
    "gemma2": GEMMA,
    "gemma3": GEMMA,
    # the layer reads the residual itself; norms stand behind
    "olmo2": {ATTENTION, MLP},
    # attention and MLP read the same norm
    "cohere": {"layers.input_layernorm", ATTENTION, MLP},
    # q, k and v in one linear, gate and up in another: their outputs are taken apart
    "phi3": {"layers.input_layernorm", "layers.post_attention_layernorm"},
    "opt": {"layers.self_attn_layer_norm", "layers.final_layer_norm", ATTENTION, "layers.fc1"},
    # norms stand behind the residual's sum and are the residual
    "opt_350m": {ATTENTION, "layers.fc1"},
    "mpt": {"blocks.norm_1", "blocks.norm_2"},
    # the router and the experts read the norm too
    "mixtral": {"layers.input_layernorm", ATTENTION},
    "qwen2_moe": {"layers.input_layernorm", ATTENTION, "shared_expert.up_proj"},
    "mamba": {"layers.norm"},
}


@pytest.mark.parametrize("kind", PRODUCERS)
def test_scales_fold_into_these_and_the_function_stays(kind: str, tmp_path: Path) -> None:
    model, family, batch = model_and_batch(kind)
    outlying(model, family)
    expected = logits(model, family, batch)
    before = {name: linear.weight.detach().clone() for name, linear in family.prunable(model).items()}
    smoothing, log = smoothed(model, family, batch, tmp_path)
    assert kinds(list(smoothing.folded)) == PRODUCERS[kind]
    error = (logits(model, family, batch) - expected).abs().max() / expected.abs().max()
    assert float(error) < 1e-5
    inside = {name for names in smoothing.folded.values() for name in names}
    assert inside | set(smoothing.unsmoothed) == before.keys()
    assert not inside & set(smoothing.unsmoothed)
    for name, linear in family.prunable(model).items():
        ratio = linear.weight.detach() / before[name]
        changed = float((ratio - 1).abs().max()) > 0.1
        assert changed == (name in inside or name in smoothing.folded), name
    assert bool(log.notes) == bool(smoothing.unsmoothed)


@pytest.mark.parametrize("kind", ["gemma3n", "deepseek_v2", "falcon_mamba", "t5", "t5_gated", "whisper"])
def test_the_function_stays(kind: str, tmp_path: Path) -> None:
    model, family, batch = model_and_batch(kind)
    expected = logits(model, family, batch)
    smoothing, _ = smoothed(model, family, batch, tmp_path)
    assert smoothing.folded
    assert float((logits(model, family, batch) - expected).abs().max() / expected.abs().max()) < 1e-5


def _narrow_mlp(width: int) -> Any:
    model = build("llama_grouped")
    mlp = model.model.layers[1].mlp
    mlp.gate_proj, mlp.up_proj = nn.Linear(32, width, bias=False), nn.Linear(32, width, bias=False)
    mlp.down_proj = nn.Linear(width, 32, bias=False)
    return model


@pytest.mark.parametrize(
    ("model", "producer"),
    [
        # each kind of attention has a number of heads of its own
        (lambda: zoo_sizes.build("mimo_v2_flash"), "self_attn.v_proj"),
        (lambda: _narrow_mlp(32), "mlp.up_proj"),
        (lambda: _narrow_mlp(96), "mlp.up_proj"),
        (lambda: _narrow_mlp(128), "mlp.up_proj"),
    ],
)
def test_blocks_of_unequal_shapes_fold_each_in_its_own_way(
    model: Callable[[], Any], producer: str, tmp_path: Path
) -> None:
    built, (_, family, batch) = model(), model_and_batch("llama_grouped")
    expected = logits(built, family, batch)
    smoothing, _ = smoothed(built, family, batch, tmp_path)
    assert {f"model.layers.{i}.{producer}" for i in range(2)} <= smoothing.folded.keys()
    assert float((logits(built, family, batch) - expected).abs().max() / expected.abs().max()) < 1e-5


def test_linears_with_a_forward_of_their_own_take_no_scale(tmp_path: Path) -> None:
    """DeepSeek-V4 computes the output of its attention in groups."""
    model, (_, family, batch) = zoo_sizes.build("deepseek_v4"), model_and_batch("llama_grouped")
    assert any(name.endswith("o_a_proj") for name in family.left_alone(model))
    expected = logits(model, family, batch)
    smoothing, _ = smoothed(model, family, batch, tmp_path)
    assert smoothing.folded
    assert float((logits(model, family, batch) - expected).abs().max() / expected.abs().max()) < 1e-5


def test_values_that_upper_blocks_read_too_take_no_scale(tmp_path: Path) -> None:
    model, family, batch = model_and_batch("gemma3n")
    smoothing, _ = smoothed(model, family, batch, tmp_path)
    assert not any(name.endswith("v_proj") for name in smoothing.folded)


@pytest.mark.parametrize("kind", ["gemma3", "llama_grouped"])
def test_a_fold_is_exact_in_the_dtype_that_norms_are_stored_in(kind: str, tmp_path: Path) -> None:
    """Gemma stores a norm's factor less 1: in bf16 a small factor has few digits left."""
    model, family, batch = model_and_batch(kind)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.copy_(parameter.bfloat16())
    outlying(model, family)
    expected = logits(model, family, batch)
    smoothing, _ = smoothed(model, family, batch, tmp_path, stored=torch.bfloat16)
    for name in smoothing.folded:
        norm = model.get_submodule(name)
        if not isinstance(norm, nn.Linear):
            assert torch.equal(norm.weight, norm.weight.bfloat16().float())
    assert float((logits(model, family, batch) - expected).abs().max() / expected.abs().max()) < 1e-5


def test_zeros_and_linears_that_are_left_out_are_scaled_with_their_group(tmp_path: Path) -> None:
    model, family, batch = model_and_batch("llama_grouped")
    outlying(model, family)
    pruned = {name: torch.rand(linear.weight.shape) < 0.5 for name, linear in family.prunable(model).items()}
    masks.apply_(model, pruned)
    expected = logits(model, family, batch)
    targets = [name for name in family.prunable(model) if "q_proj" not in name]
    smoothing, _ = smoothed(model, family, batch, tmp_path, targets)
    assert len(smoothing.folded["model.layers.0.input_layernorm"]) == 3
    assert float((logits(model, family, batch) - expected).abs().max() / expected.abs().max()) < 1e-5
    masks.check(model, pruned)


def test_heads_that_read_the_same_values_share_a_scale(tmp_path: Path) -> None:
    model, family, batch = model_and_batch("llama_grouped")
    inputs = family.inputs(batch)
    names = family.prunable(model)
    found = {fold.producer: fold for fold in folds(model, inputs, wiring(model, inputs), names, names)}
    channels_I = found["model.layers.1.self_attn.v_proj"].channels_I
    # four heads of 8 over two of keys and values
    assert channels_I.tolist() == [*range(8), *range(8), *range(8, 16), *range(8, 16)]


def _tie_norms(model: Any) -> None:
    first, second = model.model.layers
    second.input_layernorm.weight = first.input_layernorm.weight


def _read_twice(model: Any) -> None:
    """The norm's output is added to the residual besides."""

    def keep(module: Any, args: Any, kwargs: Any) -> None:
        module.seen = kwargs["hidden_states"]

    for layer in model.model.layers:
        layer.self_attn.register_forward_pre_hook(keep, with_kwargs=True)
        layer.register_forward_hook(lambda module, args, output: output + module.self_attn.seen)


@pytest.mark.parametrize("change", [_tie_norms, _read_twice])
def test_a_producer_that_others_use_is_left(change: Any, tmp_path: Path) -> None:
    model, family, batch = model_and_batch("llama_grouped")
    change(model)
    outlying(model, family)
    expected = logits(model, family, batch)
    smoothing, _ = smoothed(model, family, batch, tmp_path)
    assert not any(name.endswith("input_layernorm") for name in smoothing.folded)
    assert float((logits(model, family, batch) - expected).abs().max() / expected.abs().max()) < 1e-5
