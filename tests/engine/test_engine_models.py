"""Whole models through the engine: what it replaces, what it shares, and that it decodes as transformers does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import Qwen2Config, Qwen2ForCausalLM

import engine
from engine import decoder
from engine.decoder import Decoder
from engine.errors import EngineError
from engine.linear import EngineLinear, SharedInput
from engine.weights import DType
from stages import checkpoints, engine_models, families, masks
from stages.contracts import Checkpoint, UserError
from tests import tiny
from tests.stage_options import quantizing
from tests.tiny_engine import PHASES, llama, needs_kernels
from tests.tiny_training import sparse_checkpoint

pytestmark = needs_kernels

IDS = torch.tensor([[5, 9, 2, 60, 33, 17, 8, 100, 41, 3]])


def pruned(kind: str = "llama") -> nn.Module:
    model = tiny.build(kind)
    torch.manual_seed(3)
    prunable = families.get("causal_lm").prunable(model)
    zeros = {name: torch.rand(linear.weight.shape) < 0.6 for name, linear in prunable.items()}
    masks.apply_(model, zeros)
    return model


@torch.no_grad()
def logits(model: nn.Module, ids_BT: Tensor = IDS) -> Tensor:
    found: Tensor = model(input_ids=ids_BT).logits
    return found


@pytest.mark.parametrize("kind", ["llama", "opt", "mpt"])
def test_a_converted_model_computes_what_the_model_did(kind: str) -> None:
    model = pruned(kind)
    before = logits(model)
    converted = engine.convert(model, dtype="fp32")
    assert sum(isinstance(module, EngineLinear) for module in converted.modules()) == len(
        families.get("causal_lm").prunable(tiny.build(kind))
    )
    torch.testing.assert_close(logits(converted), before, rtol=1e-4, atol=1e-4)


def test_linears_that_share_an_input_are_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = engine.convert(pruned(), dtype="bf16")
    groups = {id(m.shared): m.shared for m in model.modules() if isinstance(m, EngineLinear) and m.shared}
    assert sorted(len(group._members) for group in groups.values()) == [2, 2, 3, 3]
    calls: list[int] = []
    multiply = EngineLinear._multiply

    def counted(self: EngineLinear, x_TI: Tensor) -> Tensor:
        calls.append(self.out_features)
        return multiply(self, x_TI)

    monkeypatch.setattr(EngineLinear, "_multiply", counted)
    logits(model)
    assert len(calls) == 2 * 4  # qkv, out, gate and up, down


def test_a_shared_input_that_was_written_to_is_computed_anew() -> None:
    model = engine.convert(pruned(), dtype="fp32")
    attention = model.model.layers[0].self_attn
    alone = engine.convert(pruned(), dtype="fp32", names=["model.layers.0.self_attn.k_proj"])
    with torch.no_grad():
        x = torch.randn(2, 32)
        attention.q_proj(x)
        x += 1
        torch.testing.assert_close(attention.k_proj(x), alone.model.layers[0].self_attn.k_proj(x))


def test_a_shared_input_is_not_kept_alive() -> None:
    model = engine.convert(pruned(), dtype="fp32")
    logits(model)
    for module in model.modules():
        if isinstance(module, EngineLinear) and module.shared:
            assert module.shared._input is None


def qwen() -> nn.Module:
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=130, hidden_size=48, intermediate_size=80, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=4, max_position_embeddings=64, tie_word_embeddings=True,
        )
    )  # fmt: skip
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter)
    return model.eval()


LLAMA3 = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 16}  # fmt: skip
MODELS = {
    "grouped heads": llama,
    "own head size": lambda: llama(head_dim=16),
    "scaled rotation": lambda: llama(rope_parameters=LLAMA3),
    "biases": qwen,
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("threads", [1, 2])
def test_decoding_equals_transformers_token_by_token(name: str, threads: int) -> None:
    model = engine.convert(MODELS[name](), dtype="fp32")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        decode = Decoder(model, context=40)
        ids = IDS % 130
        torch.testing.assert_close(decode.prefill(ids), logits(model, ids)[0, -1])
        for token in (7, 99, 12, 0, 129):
            ids = torch.cat([ids, torch.tensor([[token]])], 1)
            torch.testing.assert_close(decode.step(token), logits(model, ids)[0, -1], rtol=2e-4, atol=2e-4)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(("dtype", "head", "tolerance"), [("bf16", "bf16", 0.02), ("int8", "int8", 0.05)])
def test_decoding_in_low_precision_stays_near_transformers(dtype: DType, head: DType, tolerance: float) -> None:
    """Not equal: the other order of fp32 sums moves values across a rounding here and there."""
    model = engine.convert(llama(), dtype=dtype, head=head)
    decode = Decoder(model, context=40)
    ids = IDS % 130
    decode.prefill(ids)
    for token in (7, 99, 12):
        ids = torch.cat([ids, torch.tensor([[token]])], 1)
        expected = logits(model, ids)[0, -1]
        assert float((decode.step(token) - expected).norm() / expected.norm()) < tolerance


def test_decoding_says_when_its_cache_is_full_or_a_token_unknown() -> None:
    decode = Decoder(engine.convert(llama(), dtype="fp32"), context=11)
    decode.prefill(IDS % 130)
    with pytest.raises(EngineError, match="vocabulary of 130"):
        decode.step(130)
    decode.step(1)
    with pytest.raises(EngineError, match="11 positions"):
        decode.step(1)


def test_a_profile_covers_the_steps_and_starts_anew() -> None:
    decode = Decoder(engine.convert(llama(), dtype="fp32"), context=20)
    decode.prefill(IDS % 130)
    for _ in range(3):
        decode.step(1)
    found = decode.profile()
    assert found.steps == 3
    assert set(found.seconds) == set(PHASES)
    assert all(seconds > 0 for seconds in found.seconds.values())
    assert decode.profile().steps == 0


def test_what_cannot_be_decoded_says_why() -> None:
    assert "opt" in str(decoder.unsupported(engine.convert(tiny.build("opt"), dtype="fp32")))
    assert "converted" in str(decoder.unsupported(llama()))
    uneven = engine.convert(llama(), dtype="int8")
    uneven.model.layers[1].mlp.up_proj.input_scale = torch.full((48,), 2.0)
    assert "different scales" in str(decoder.unsupported(uneven))
    dynamic = llama(rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4})
    assert "dynamic" in str(decoder.unsupported(engine.convert(dynamic, dtype="fp32")))


def test_engine_linears_have_no_gradients() -> None:
    model = engine.convert(pruned(), dtype="fp32")
    with pytest.raises(EngineError, match="no gradients"):
        model.model.layers[0].mlp.down_proj(torch.ones(1, 64, requires_grad=True))


def test_quantized_checkpoints_run_with_their_own_weights_and_scales(tmp_path: Path) -> None:
    from stages.quantize import run as quantize
    from tests.recording import RecordingLog

    source = sparse_checkpoint(tmp_path / "sparse")
    (tmp_path / "quantized").mkdir()
    skipping = quantizing(skip=[".*o_proj"])
    quantize.run(skipping, {"model": source}, tmp_path / "quantized", RecordingLog(tmp_path / "resume"))
    checkpoint = Checkpoint(tmp_path / "quantized", "q")
    simulated = checkpoints.load(checkpoint, torch.float32)
    model = engine_models.load(checkpoint, "int8", "benchmark.backends")
    kinds = {name: type(module) for name, module in model.named_modules()}
    assert kinds["model.layers.0.self_attn.q_proj"] is EngineLinear
    assert kinds["model.layers.0.self_attn.o_proj"] is nn.Linear  # what the quantize stage left alone stays so
    torch.testing.assert_close(logits(model), logits(simulated), rtol=1e-3, atol=1e-3)


def test_a_quantized_checkpoint_is_not_run_in_another_dtype(tmp_path: Path) -> None:
    from stages.quantize import run as quantize
    from tests.recording import RecordingLog

    source = sparse_checkpoint(tmp_path / "sparse")
    (tmp_path / "quantized").mkdir()
    quantize.run(quantizing(), {"model": source}, tmp_path / "quantized", RecordingLog(tmp_path / "resume"))
    with pytest.raises(UserError, match="expected dtype int8"):
        engine_models.load(Checkpoint(tmp_path / "quantized", "q"), "bf16", "evaluate.runtime")


def test_shared_inputs_need_the_same_smoothing() -> None:
    model = engine.convert(pruned(), dtype="int8")
    attention = model.model.layers[0].self_attn
    assert isinstance(attention.q_proj.shared, SharedInput)
    for linear in (attention.q_proj, attention.k_proj, attention.v_proj):
        linear.shared = None
    attention.k_proj.input_scale = torch.full((32,), 2.0)
    engine.linear.fuse(attention)
    assert attention.q_proj.shared is None
