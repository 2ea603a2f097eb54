"""W8A8: rounding, zeros, SmoothQuant, exceptions, and what is on disk."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from stages import checkpoints, families, masks
from stages.calibrate import run as calibrate
from stages.contracts import Calibration, Checkpoint, UserError
from stages.quantize import quantized, sensitivity, smoothquant, writing
from stages.quantize import run as quantize
from stages.quantize.quantized import Int8Linear
from stages.tokens import IGNORED
from tests import tiny
from tests.recording import RecordingLog
from tests.stage_options import quantizing
from tests.tiny_training import sparse_checkpoint

KINDS = ("llama", "opt", "mpt")


def calibration(folder: Path, samples: int = 6, length: int = 32, padded: bool = False) -> Calibration:
    folder.mkdir(parents=True, exist_ok=True)
    ids_NL = torch.randint(1, tiny.VOCABULARY, (samples, length), generator=torch.Generator().manual_seed(0))
    mask_NL = torch.ones_like(ids_NL)
    if padded:
        mask_NL[1:, length // 2 :] = 0
    batch = {"input_ids": ids_NL, "labels": ids_NL.masked_fill(mask_NL == 0, IGNORED), "use": mask_NL}
    batch |= {"attention_mask": mask_NL.clone()} if padded else {}
    save_file({name: tensor.int() for name, tensor in batch.items()}, folder / calibrate.FILE)
    return Calibration(folder, "calibration")


def quantized_checkpoint(tmp_path: Path, kind: str = "llama", **changes: object) -> tuple[Checkpoint, RecordingLog]:
    out, log = tmp_path / "out", RecordingLog(tmp_path / "resume")
    out.mkdir()
    inputs = {
        "model": sparse_checkpoint(tmp_path / "model", kind),
        "calibration": calibration(tmp_path / "calibration"),
    }
    log.found["metrics"] = quantize.run(quantizing(**changes), inputs, out, log)
    return Checkpoint(out, "quantized"), log


def logits(model: nn.Module, seed: int = 5) -> Tensor:
    ids_BT = torch.randint(1, tiny.VOCABULARY, (2, 24), generator=torch.Generator().manual_seed(seed))
    with torch.inference_mode():
        return model(input_ids=ids_BT).logits


def test_weights_are_rounded_to_the_nearest_level_of_their_row() -> None:
    W_OI = torch.randn(7, 33) * torch.logspace(-6, 3, 7)[:, None]
    q_OI, scale_O = quantized.quantize_weight(W_OI)
    assert q_OI.dtype == torch.int8
    assert torch.allclose(scale_O, W_OI.abs().amax(1) / 127, rtol=1e-6)
    error_OI = (W_OI - q_OI * scale_O[:, None]).abs()
    assert bool((error_OI <= scale_O[:, None] * (0.5 + 1e-4)).all())
    assert torch.equal(q_OI.abs().amax(1), torch.full((7,), 127, dtype=torch.int8))


def test_rounding_in_closed_form() -> None:
    q_OI, scale_O = quantized.quantize_weight(torch.tensor([[127.0, -63.4, 0.0, 1.6], [0.0, 0.0, 0.0, 0.0]]))
    assert q_OI.tolist() == [[127, -63, 0, 2], [0, 0, 0, 0]]
    assert scale_O.tolist() == [1.0, 1.0]


def test_tokens_of_zeros_and_of_subnormal_numbers_are_finite() -> None:
    x_TI = torch.stack([torch.zeros(8), torch.full((8,), 2e-43), torch.full((8,), 3e38)])
    q_TI, scale_T = quantized.quantize_activation(x_TI)
    assert bool(((x_TI - q_TI * scale_T[:, None]).abs() <= scale_T[:, None] * (0.5 + 1e-4)).all())
    assert q_TI[2].tolist() == [127] * 8


def test_integer_sums_are_exact_with_and_without_integer_instructions() -> None:
    code = """
import torch
from stages.quantize import quantized
for T, I in ((1, 8), (3, 576), (40, 3001)):
    q_TI = torch.randint(-127, 128, (T, I), dtype=torch.int8)
    q_TI[0] = 127
    q_OI = torch.randint(-127, 128, (24, I), dtype=torch.int8)
    q_OI[:2] = torch.tensor([[127], [-127]])
    assert torch.equal(quantized.integer_matmul(q_TI, q_OI).double(), q_TI.double() @ q_OI.double().t())
"""
    exec(code)
    # oneDNN limited to AVX2 adds pairs of products in 16 bits that saturate, as CPUs without VNNI do
    limited = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"}
    subprocess.run([sys.executable, "-c", code], env=limited, check=True, cwd=Path(__file__).parents[2])


def test_tokens_are_rounded_as_compressed_tensors_does() -> None:
    """255 steps from -max to +max: 127.5 of them on either side, where 128 does not exist."""
    q_TI, scale_T = quantized.quantize_activation(torch.tensor([[255.0, -255.0, 1.9, 0.0], [-51.0, 25.5, 0.3, 0.1]]))
    assert scale_T.tolist() == pytest.approx([2.0, 0.4])
    assert q_TI.tolist() == [[127, -128, 1, 0], [-128, 64, 1, 0]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_are_rounded_by_the_scale_that_is_stored(dtype: torch.dtype) -> None:
    W_OI = torch.randn(50, 33) * torch.logspace(-2, 1, 50)[:, None]
    q_OI, scale_O = quantized.quantize_weight(W_OI, dtype)
    assert torch.equal(scale_O, scale_O.to(dtype).float())
    assert bool(((W_OI - q_OI * scale_O[:, None]).abs() <= 0.501 * scale_O[:, None]).all())


def test_int8_linear_is_the_product_of_its_rounded_operands() -> None:
    linear = nn.Linear(48, 16)
    x_BTI = torch.randn(2, 3, 48)
    layer = Int8Linear.of(linear)
    q_TI, scale_T = quantized.quantize_activation(x_BTI.reshape(6, 48))
    expected = (q_TI.double() * scale_T[:, None]) @ layer.dequantized().double().t() + linear.bias.double()
    assert torch.allclose(layer(x_BTI).double().reshape(6, 16), expected, rtol=1e-5, atol=1e-6)
    assert layer(x_BTI.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("kind", KINDS)
def test_quantized_model_is_close_to_the_fp32_model(kind: str, tmp_path: Path) -> None:
    checkpoint, log = quantized_checkpoint(tmp_path, kind)
    reference = logits(checkpoints.load(Checkpoint(tmp_path / "model", "m")))
    found = logits(checkpoints.load(checkpoint))
    error = float((found - reference).norm() / reference.norm())
    assert 0 < error < 0.05
    assert len(log.found["metrics"]) == 4
    assert 0 < log.found["metrics"]["weight_error"] < 0.01


@pytest.mark.parametrize("smooth", [0.0, 0.5])
@pytest.mark.parametrize("kind", KINDS)
def test_zeros_stay_zero(kind: str, smooth: float, tmp_path: Path) -> None:
    checkpoint, log = quantized_checkpoint(tmp_path, kind, smooth=smooth)
    model = checkpoints.load(checkpoint)
    pruned = masks.of(checkpoint)
    assert pruned.keys() == quantized.linears(model).keys()
    assert log.found["metrics"]["sparsity"] == pytest.approx(masks.sparsity(pruned))
    for name, keep_OI in pruned.items():
        assert not quantized.linears(model)[name].weight[~keep_OI].any()


def test_revived_zeros_are_refused_at_save_and_at_load(tmp_path: Path) -> None:
    checkpoint, _ = quantized_checkpoint(tmp_path)
    model = checkpoints.load(checkpoint)
    pruned = masks.of(checkpoint)
    name, layer = next(iter(quantized.linears(model).items()))
    layer.weight[~pruned[name]] = 1
    with pytest.raises(AssertionError, match="not zero"):
        writing.save(model, pruned, {}, tmp_path)
    tensors = load_file(checkpoint.path / "model.safetensors")
    save_file({**tensors, f"{name}.weight": layer.weight}, checkpoint.path / "model.safetensors")
    with pytest.raises(AssertionError, match="not zero"):
        checkpoints.load(checkpoint)


def test_smoothing_scale_in_closed_form_and_one_where_nothing_flows() -> None:
    s_I = smoothquant.smoothing_scale(torch.tensor([16.0, 0.0, 3.0]), torch.tensor([4.0, 1.0, 0.0]), 0.5)
    assert s_I.tolist() == [2.0, 1.0, 1.0]


def test_smoothing_helps_where_activations_have_outliers() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(64, 64, bias=False)
    x_TI = torch.randn(100, 64)
    x_TI[:, 3] *= 100
    amax_I, W_amax_I = x_TI.abs().amax(0), linear.weight.detach().abs().amax(0)
    reference = linear(x_TI).detach()
    plain = (Int8Linear.of(linear)(x_TI) - reference).norm()
    s_I = smoothquant.smoothing_scale(amax_I, W_amax_I, 0.5)
    linear.weight.data *= s_I
    assert float((Int8Linear.of(linear)(x_TI / s_I) - reference).norm()) < 0.5 * float(plain)


def test_padding_does_not_widen_activation_ranges(tmp_path: Path) -> None:
    family = families.get("causal_lm")
    found = []
    padded = calibration(tmp_path / "calibration", length=16, padded=True)
    for size in (1, 4):
        model = tiny.build("llama")
        batches = quantize.batches(family, padded, 4, size)
        assert all(batch["use"].all() for batch in batches) == (size == 1), "alone, a sample has no padding"
        targets = [name for name in family.prunable(model) if name.endswith("down_proj")]
        smoothquant.smooth_(model, family, targets, batches, 0.5, torch.float32, RecordingLog(tmp_path))
        found.append({name: model.get_submodule(name).weight for name in targets})
    for name in found[0]:
        assert torch.allclose(found[0][name], found[1][name], rtol=1e-4)


def test_skipped_linears_stay_in_floating_point(tmp_path: Path) -> None:
    checkpoint, log = quantized_checkpoint(tmp_path, skip=[r".*\.down_proj", r"model\.layers\.0\.self_attn\.q_proj"])
    skipped = {"model.layers.0.mlp.down_proj", "model.layers.1.mlp.down_proj", "model.layers.0.self_attn.q_proj"}
    assert log.found["skipped"].keys() == skipped
    assert set(checkpoint.quantization["ignore"]) == skipped | {"lm_head"}
    model = checkpoints.load(checkpoint)
    original = checkpoints.load(Checkpoint(tmp_path / "model", "m"))
    for name in skipped:
        assert torch.equal(model.get_submodule(name).weight, original.get_submodule(name).weight)
    assert len(quantized.linears(model)) == 14 - 3


@pytest.mark.parametrize(
    ("changes", "option"),
    [
        ({"skip": ["down_proj"]}, "quantize.skip"),
        ({"skip": [".*"]}, "quantize.skip"),
        ({"skip_sensitive": 14}, "quantize.skip_sensitive"),
    ],
)
def test_impossible_exceptions_are_refused(changes: dict[str, object], option: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        quantized_checkpoint(tmp_path, **changes)
    assert caught.value.option == option


def test_sensitivity_finds_the_layer_that_rounding_hurts_most(tmp_path: Path) -> None:
    """One linear gets a row scale so uneven that int8 wipes out all but one of its inputs."""
    folder = tmp_path / "model"
    source = sparse_checkpoint(folder)
    model = checkpoints.load(source)
    worst = "model.layers.1.mlp.up_proj"
    with torch.no_grad():
        # a huge weight on an input that carries almost nothing: the function keeps, the grid coarsens
        model.get_submodule(worst).weight[:, 0] = 1e4
        model.get_submodule("model.layers.1.post_attention_layernorm").weight[0] = 1e-9
    model.save_pretrained(folder)
    (folder / "masks.safetensors").unlink()
    (tmp_path / "out").mkdir()
    log = RecordingLog(tmp_path / "resume")
    inputs = {"model": Checkpoint(folder, "m"), "calibration": calibration(tmp_path / "calibration")}
    quantize.run(quantizing(skip_sensitive=1), inputs, tmp_path / "out", log)
    assert list(log.found["skipped"]) == [worst]
    rises = {step: values["loss_increase"] for step, values in log.points if "loss_increase" in values}
    assert len(rises) == 14
    assert max(rises, key=lambda step: rises[step]) == 12


def test_sensitivity_equals_whole_forward_passes_and_leaves_the_model(tmp_path: Path) -> None:
    family = families.get("causal_lm")
    model = checkpoints.load(sparse_checkpoint(tmp_path / "model"))
    reference = logits(model)
    batch = quantize.batches(family, calibration(tmp_path / "calibration"), 4)[0]
    name = "model.layers.1.self_attn.o_proj"
    rises = sensitivity.loss_increases(model, family, [name], batch, Int8Linear.of, RecordingLog(tmp_path))
    assert torch.equal(logits(model), reference)
    with torch.inference_mode():
        before = model(input_ids=batch["input_ids"], labels=batch["labels"]).loss
        model.set_submodule(name, Int8Linear.of(model.get_submodule(name)))
        after = model(input_ids=batch["input_ids"], labels=batch["labels"]).loss
    assert rises == {name: pytest.approx(float(after - before), abs=1e-6)}


@pytest.mark.parametrize("kind", KINDS)
def test_save_and_load_give_the_same_model(kind: str, tmp_path: Path) -> None:
    checkpoint, _ = quantized_checkpoint(tmp_path, kind, smooth=0.5)
    model = checkpoints.load(checkpoint)
    again = tmp_path / "again"
    again.mkdir()
    writing.save(model, masks.of(checkpoint), checkpoint.quantization, again)
    assert torch.equal(logits(checkpoints.load(Checkpoint(again, "again"))), logits(model))
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_linears_take_a_quarter_of_the_bytes(tmp_path: Path) -> None:
    checkpoint, _ = quantized_checkpoint(tmp_path)
    tensors = load_file(checkpoint.path / "model.safetensors")
    dense = load_file(tmp_path / "model" / "model.safetensors")
    names = [name.removesuffix(".weight_scale") for name in tensors if name.endswith(".weight_scale")]
    assert len(names) == 14
    small = sum(tensors[f"{name}.{part}"].nbytes for name in names for part in ("weight", "weight_scale"))
    assert small < 0.30 * sum(dense[f"{name}.weight"].nbytes for name in names), "tiny rows: a scale for 32 weights"
    assert tensors.keys() - {f"{name}.weight_scale" for name in names} == dense.keys()


def test_stored_type_of_the_rest_is_kept_and_can_be_asked_for(tmp_path: Path) -> None:
    folder, out = tmp_path / "model", tmp_path / "out"
    out.mkdir()
    tiny.build("llama").bfloat16().save_pretrained(folder)
    tiny.save_tokenizer(folder)
    inputs = {"model": Checkpoint(folder, "m"), "calibration": calibration(tmp_path / "calibration")}
    quantize.run(quantizing(), inputs, out, RecordingLog(tmp_path / "resume"))
    embeddings = load_file(out / "model.safetensors")["model.embed_tokens.weight"]
    assert embeddings.dtype == torch.bfloat16
    for dtype, expected in ((None, torch.bfloat16), (torch.float32, torch.float32)):
        model = checkpoints.load(Checkpoint(out, "q"), dtype)
        assert model.dtype == logits(model).dtype == expected
        assert {layer.weight_scale.dtype for layer in quantized.linears(model).values()} == {torch.float32}


def test_corrupted_files_are_refused(tmp_path: Path) -> None:
    checkpoint, _ = quantized_checkpoint(tmp_path)
    path, record = checkpoint.path / "model.safetensors", checkpoint.path / "config.json"
    whole, tensors, text = path.read_bytes(), load_file(path), record.read_text()
    name = "model.layers.0.mlp.up_proj"
    for broken in (
        {key: tensor for key, tensor in tensors.items() if key != f"{name}.weight_scale"},
        {key: tensor for key, tensor in tensors.items() if key != "model.norm.weight"},
        {**tensors, f"{name}.weight": tensors[f"{name}.weight"].float()},
        {**tensors, f"{name}.weight": tensors[f"{name}.weight"][:, :5].contiguous()},
        {**tensors, "model.extra": torch.zeros(1)},
    ):
        save_file(broken, path)
        with pytest.raises(UserError, match=r"cannot be read|has no int8 weight"):
            checkpoints.load(checkpoint)
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="cannot be read"):
        checkpoints.load(checkpoint)
    path.write_bytes(whole)
    for one, other, reason in (
        ("int-quantized", "pack-quantized", "format"),
        ('"num_bits": 8', '"num_bits": 4', "num_bits is 4, expected 8"),
        ('"strategy": "token"', '"strategy": "tensor"', "strategy is 'tensor', expected 'token'"),
        ("compressed-tensors", "gptq", "one of the methods"),
    ):
        record.write_text(text.replace(one, other))
        with pytest.raises(UserError, match=reason):
            checkpoints.load(checkpoint)


def test_a_quantized_model_is_not_quantized_again(tmp_path: Path) -> None:
    checkpoint, log = quantized_checkpoint(tmp_path)
    inputs = {"model": checkpoint, "calibration": Calibration(tmp_path / "calibration", "c")}
    with pytest.raises(UserError, match="already"):
        quantize.run(quantizing(), inputs, tmp_path / "again", log)
