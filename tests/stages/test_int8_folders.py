"""int8 checkpoints outside this project: plain transformers gives their logits, or refuses them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from engine.checkpoints import read_checkpoint
from engine.conversion import convert
from stages import checkpoints, families
from stages.contracts import Checkpoint, UserError
from stages.model import run as source
from stages.quantize import run as quantize
from stages.quantize.spec import Quantize
from tests import tiny
from tests import tiny_encoder_decoders as encoder_decoders
from tests.composed import config_of
from tests.recording import RecordingLog
from tests.tiny_causal import build


def written(folder: Path, model: Any, dtype: torch.dtype = torch.float32, **changes: Any) -> tuple[Path, RecordingLog]:
    model.to(dtype).save_pretrained(folder / "model")
    tiny.save_tokenizer(folder / "model")
    (folder / "int8").mkdir()
    log = RecordingLog(folder / "resume")
    asked = {"scheme": "w8a8", "smooth": 0.0, "skip": [], "skip_sensitive": 0, "dense": True, **changes}
    quantize.run(Quantize.model_validate(asked), {"model": Checkpoint(folder / "model", "")}, folder / "int8", log)
    return folder / "int8", log


def difference(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def logits(model: Any, kind: str = "") -> Tensor:
    if kind in encoder_decoders.KINDS:
        read = {**encoder_decoders.read(kind), "decoder_input_ids": torch.arange(2, 18).view(2, 8)}
    else:
        read = {"input_ids": torch.arange(1, 49).view(3, 16)}
    with torch.no_grad():
        return model(**read).logits.float()


@pytest.mark.parametrize(
    "kind", ["llama_grouped", "gemma3", "olmo2", "mamba", "falcon", "t5", "t5_gated", "mt5", "whisper"]
)
def test_plain_transformers_gives_the_logits(kind: str, tmp_path: Path) -> None:
    model = encoder_decoders.build(kind) if kind in encoder_decoders.KINDS else build(kind)
    folder, log = written(tmp_path, model)
    assert log.found["method"] == "compressed-tensors"
    ours = checkpoints.load(Checkpoint(folder, ""), torch.float32)
    theirs = families.of(folder).auto_class.from_pretrained(folder)
    # the same arithmetic; here and there a last bit of fp32 rounds a number to the next of its 256 levels
    assert difference(logits(theirs, kind), logits(ours, kind)) < (0.05 if kind == "whisper" else 0.02)


def test_scales_in_bf16_are_the_scales_of_all_readers(tmp_path: Path) -> None:
    folder, _ = written(tmp_path, build("llama_grouped"), torch.bfloat16, skip=[r".*\.0\.mlp\.down_proj"])
    stored = load_file(folder / "model.safetensors")
    scale = stored["model.layers.1.mlp.down_proj.weight_scale"]
    assert (scale.dtype, scale.shape) == (torch.bfloat16, (32, 1))
    described = json.loads((folder / "config.json").read_bytes())["quantization_config"]
    assert described["ignore"] == ["model.layers.0.mlp.down_proj", "lm_head"]
    ours = checkpoints.load(Checkpoint(folder, ""), torch.float32)
    theirs = families.of(folder).auto_class.from_pretrained(folder, dtype=torch.float32)
    assert difference(logits(theirs), logits(ours)) < 0.02


@pytest.mark.parametrize("kind", ["opt", "opt_350m", "mixtral", "qwen2_moe", "deepseek_v2", "gpt2"])
def test_what_transformers_would_round_otherwise_it_refuses(kind: str, tmp_path: Path) -> None:
    """Without a batch dimension compressed-tensors takes one scale for all tokens. Experts that are one tensor, and
    layers that are no linears, it would not see at all."""
    folder, log = written(tmp_path, build(kind))
    assert log.found["method"] == "squarehead"
    assert any("transformers and vLLM refuse it" in note for note in log.notes)
    with pytest.raises(OSError, match="no file named"):
        families.of(folder).auto_class.from_pretrained(folder)
    exact = logits(checkpoints.load(Checkpoint(tmp_path / "model", "")))
    ours = logits(checkpoints.load(Checkpoint(folder, ""), torch.float32))
    assert 0 < difference(ours, exact) < 0.05
    model, weights = read_checkpoint(folder)
    engine = convert(model, dtype="int8", quantized=weights, names=list(weights))
    assert difference(logits(engine), ours) < 1e-5


@pytest.mark.parametrize("kind", ["mamba", "falcon_mamba"])
def test_linears_that_are_read_but_never_called_stay_in_floating_point(kind: str, tmp_path: Path) -> None:
    folder, log = written(tmp_path, build(kind))
    names = {f"backbone.layers.{i}.mixer.dt_proj" for i in range(2)}
    assert log.found["skipped"].keys() == names
    assert any("dt_proj" in note for note in log.notes)
    exact = logits(checkpoints.load(Checkpoint(tmp_path / "model", "")))
    assert difference(logits(checkpoints.load(Checkpoint(folder, ""))), exact) < 0.05


def test_linears_whose_weight_is_read_besides_stay_in_floating_point(tmp_path: Path, monkeypatch: Any) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.down_proj(self.up_proj(x)) + torch.nn.functional.linear(self.up_proj(x), self.down_proj.weight)

    monkeypatch.setattr("transformers.models.llama.modeling_llama.LlamaMLP.forward", forward)
    folder, log = written(tmp_path, build("llama_grouped"))
    names = {f"model.layers.{i}.mlp.down_proj" for i in range(2)}
    assert names <= log.found["skipped"].keys()
    exact = logits(checkpoints.load(Checkpoint(tmp_path / "model", "")))
    assert difference(logits(checkpoints.load(Checkpoint(folder, ""))), exact) < 0.05


def test_a_model_that_cannot_run_in_int8_is_not_written(tmp_path: Path, monkeypatch: Any) -> None:
    """It reads the weights of its linears by another way than the linears."""

    def forward(self: Any, x: Tensor) -> Tensor:
        weights = dict(self.named_parameters())
        return self.down_proj(self.up_proj(x)) + torch.nn.functional.linear(x, weights["gate_proj.weight"])[..., :32]

    monkeypatch.setattr("transformers.models.llama.modeling_llama.LlamaMLP.forward", forward)
    model = build("llama_grouped")
    monkeypatch.setattr("stages.families.causal_lm.not_replaceable", lambda model: {})
    with pytest.raises(UserError, match="LlamaForCausalLM cannot run with int8 linears"):
        written(tmp_path, model)
    assert not list((tmp_path / "int8").iterdir())


def test_a_quantized_folder_is_no_model_to_begin_with(tmp_path: Path) -> None:
    folder, _ = written(tmp_path, build("llama_grouped"))
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match=r"quantized already \(compressed-tensors\), .* made from") as caught:
        source.run(config_of(f"model.path={folder}").model, {}, tmp_path / "out", RecordingLog(tmp_path / "resume"))
    assert caught.value.option == "model.path"
