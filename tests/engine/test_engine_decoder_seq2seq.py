"""The engine's own decoding step on T5 and Whisper: the logits of transformers, step by step, and the same texts.

Stated tolerances: fp32 as for Llama (2e-4); rounded dtypes by the distance of all logits, as rounding moves values
across a step here and there.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import engine
from engine import decoder, kernels, layouts
from engine.decoder import EncoderDecoder
from engine.errors import EngineError
from engine.weights import DType
from stages import families
from stages.families.encoder_decoder import Decoding
from stages.families.encoder_decoder import EncoderDecoder as Family
from tests import tiny
from tests import tiny_encoder_decoders as tiny_models
from tests.tiny_engine import encoder_input, needs_kernels, pruned_encoder_decoder

pytestmark = needs_kernels

KINDS = tiny_models.KINDS
STEPS = {"whisper": tiny_models.TARGET_POSITIONS - 2}
CONTEXT = {"whisper": tiny_models.TARGET_POSITIONS}


def tokens(kind: str) -> list[int]:
    """The prompt and what follows, of T5 more than FAR."""
    draw = torch.Generator().manual_seed(2)
    following = torch.randint(2, tiny.VOCABULARY, (STEPS.get(kind, 40),), generator=draw).tolist()
    return [*tiny_models.prompt(kind), *following]


@torch.no_grad()
def expected(model: Any, ids: list[int], read: dict[str, Tensor]) -> Tensor:
    """`logits_TV` of one forward pass of transformers over all tokens."""
    logits_TV: Tensor = model(**read, decoder_input_ids=torch.tensor([ids])).logits[0]
    return logits_TV


def stepped(model: Any, ids: list[int], read: dict[str, Tensor], prompt: int) -> Tensor:
    """The same from the last token of a prompt on, by the engine's steps."""
    decode = EncoderDecoder(model, len(ids))
    decode.read(read)
    found = [decode.prefill(torch.tensor([ids[:prompt]])).clone()]
    found += [decode.step(token).clone() for token in ids[prompt:]]
    return torch.stack(found)


def distance(found: Tensor, right: Tensor) -> float:
    return float((found - right).norm() / right.norm())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("threads", [1, 2])
def test_steps_equal_one_pass_of_transformers(kind: str, threads: int) -> None:
    model = engine.convert(pruned_encoder_decoder(kind), dtype="fp32")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for row, prompt in ((0, 1), (-1, len(tiny_models.prompt(kind)) + 2)):
            ids, read = tokens(kind), encoder_input(kind, row)
            found_TV, right_TV = stepped(model, ids, read, prompt), expected(model, ids, read)[prompt - 1 :]
            torch.testing.assert_close(found_TV, right_TV, rtol=2e-4, atol=2e-4)
    finally:
        torch.set_num_threads(before)


def test_every_instruction_set_gives_the_same(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "available_isas", lambda: (isa,))
    tolerances: dict[DType, float] = {"fp32": 1e-5, "int8": 0.03}
    for kind in KINDS:
        ids, read = tokens(kind)[:8], encoder_input(kind)
        for dtype, tolerance in tolerances.items():
            model = engine.convert(pruned_encoder_decoder(kind), dtype=dtype, head=dtype)
            assert distance(stepped(model, ids, read, 1), expected(model, ids, read)) < tolerance


@pytest.mark.parametrize(("dtype", "head"), [("bf16", "fp32"), ("bf16", "bf16"), ("int8", "fp32"), ("int8", "int8")])
def test_steps_in_low_precision_stay_near_transformers(dtype: DType, head: DType) -> None:
    for kind in KINDS:
        ids, read = tokens(kind), encoder_input(kind)
        for dense in (False, True):
            model = engine.convert(pruned_encoder_decoder(kind), dtype=dtype, head=head, keep_dense=dense)
            assert distance(stepped(model, ids, read, 1), expected(model, ids, read)) < 0.05, kind


@pytest.mark.parametrize("kind", ["t5_gated", "whisper"])
def test_inputs_are_divided_by_their_scales(kind: str) -> None:
    model = engine.convert(pruned_encoder_decoder(kind), dtype="fp32")
    ids, read = tokens(kind)[:6], encoder_input(kind)
    plain = expected(model, ids, read)
    for block in layouts.of(model).blocks:
        for linears in (block.inputs, [block.out], block.encoded or []):
            for linear in linears:
                linear.input_scale, linear.shared = torch.linspace(0.5, 1.5, linear.in_features), None
    engine.linear.fuse(model)
    right = expected(model, ids, read)
    assert distance(right, plain) > 0.1
    torch.testing.assert_close(stepped(model, ids, read, 1), right, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["fp32", "int8"])
def test_greedy_texts_are_those_of_generate(kind: str, dtype: DType) -> None:
    family = families.get(tiny_models.family(kind))
    assert isinstance(family, Family)
    model = engine.convert(tiny_models.pruned(kind), dtype=dtype, head=dtype)
    decode = EncoderDecoder(model, 20)
    for row in range(2):  # one decoder, one text after the other
        read = encoder_input(kind, row)
        [right] = family.generate(model, dict(read), Decoding(tiny_models.prompt(kind), 1, 1.0, 12))
        decode.read(read)
        ids = [int(decode.prefill(torch.tensor([tiny_models.prompt(kind)])).argmax())]
        while len(ids) < 12 and ids[-1] != model.config.eos_token_id:
            ids.append(int(decode.step(ids[-1]).argmax()))
        assert right
        assert [token for token in ids if token != model.config.eos_token_id] == right


def test_a_profile_is_of_the_steps_without_the_prompt() -> None:
    kind = "whisper"
    decode = EncoderDecoder(engine.convert(pruned_encoder_decoder(kind), dtype="fp32"), 20)
    decode.read(encoder_input(kind))
    decode.prefill(torch.tensor([tiny_models.prompt(kind)]))
    assert decode.profile().steps == 0
    decode.step(7)
    found = decode.profile()
    assert found.steps == 1
    assert list(found.seconds) == [
        *("qkv", "attention", "out", "query", "cross_attention", "cross_out", "up", "activation", "down", "head")
    ]
    assert all(seconds > 0 for seconds in found.seconds.values())
    assert found.weight_bytes.keys() == {"qkv", "out", "query", "cross_out", "up", "down", "head"}


def test_what_a_step_cannot_be_given_is_refused() -> None:
    model = engine.convert(pruned_encoder_decoder("t5"), dtype="fp32")
    decode, start = EncoderDecoder(model, 3), torch.tensor([[0]])
    with pytest.raises(EngineError, match="comes after `prefill`"):
        decode.step(5)
    with pytest.raises(EngineError, match="nothing to read"):
        decode.prefill(start)
    with pytest.raises(EngineError, match="expected one sequence"):
        decode.read(tiny_models.read("t5"))
    read = encoder_input("t5")
    decode.read({**read, "attention_mask": torch.zeros_like(read["attention_mask"])})
    with pytest.raises(EngineError, match="nothing but padding"):
        decode.prefill(start)
    decode.read(read)
    with pytest.raises(EngineError, match=r"T from 1 to 3"):
        decode.prefill(torch.zeros(1, 4, dtype=torch.long))
    with pytest.raises(EngineError, match=f"vocabulary of {tiny.VOCABULARY}"):
        decode.prefill(torch.tensor([[tiny.VOCABULARY]]))
    decode.prefill(torch.tensor([[0, 4]]))
    decode.step(5)
    with pytest.raises(EngineError, match="3 positions"):
        decode.step(5)
    with pytest.raises(EngineError, match="positions for 32"):
        EncoderDecoder(engine.convert(pruned_encoder_decoder("whisper"), dtype="fp32"), 33)


def test_what_cannot_be_stepped_says_why() -> None:
    model = pruned_encoder_decoder("t5")
    assert "converted" in str(decoder.unsupported(model))
    engine.convert(model, dtype="fp32")
    assert decoder.unsupported(model) is None
    model.config.dense_act_fn = "tanh"
    assert "the activation is tanh" in str(decoder.unsupported(model))
    uneven = engine.convert(pruned_encoder_decoder("whisper"), dtype="int8")
    uneven.model.decoder.layers[1].self_attn.k_proj.input_scale = torch.full((32,), 2.0)
    assert "different scales" in str(decoder.unsupported(uneven))
    headless = engine.convert(pruned_encoder_decoder("whisper"), dtype="fp32")
    headless.config.is_encoder_decoder = False
    with pytest.raises(EngineError, match="this whisper has no encoder"):
        EncoderDecoder(headless, 8)
