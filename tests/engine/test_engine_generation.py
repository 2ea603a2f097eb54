"""Compiled steps inside transformers' `generate`: the same texts, a cache that stays true, which calls are steps."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import engine
from engine import generation
from engine.step import Step
from tests import tiny
from tests import tiny_encoder_decoders as tiny_models
from tests.tiny_engine import encoder_input, llama, needs_kernels, pruned_encoder_decoder

pytestmark = needs_kernels

KINDS = ("llama", "t5", "whisper")


def converted(kind: str) -> Any:
    return engine.convert(llama() if kind == "llama" else pruned_encoder_decoder(kind), dtype="fp32")


def inputs(kind: str, row: int = -1) -> dict[str, Tensor]:
    if kind == "llama":
        ids_1T = torch.tensor([[5, 9, 2, 60], [8, 100, 41, 3]])[row][None]
        return {"input_ids": ids_1T, "attention_mask": torch.ones_like(ids_1T)}
    given = encoder_input(kind, row)
    if kind == "whisper":
        given["attention_mask"] = torch.ones_like(given["input_features"][:, 0], dtype=torch.long)
    return given | {"decoder_input_ids": torch.tensor([tiny_models.prompt(kind)])}


def written(model: Any, kind: str, row: int = -1, **settings: Any) -> Any:
    from transformers import GenerationMixin

    settings = {"max_new_tokens": 10, "max_length": None, "do_sample": False, "eos_token_id": None} | settings
    return GenerationMixin.generate(model, **inputs(kind, row), **settings)


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Tokens that went through the compiled step."""
    found: list[int] = []
    run = Step.run

    def counted(self: Step, token: int, position: int) -> Tensor:
        found.append(token)
        return run(self, token, position)

    monkeypatch.setattr(Step, "run", counted)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_generate_takes_compiled_steps_and_writes_the_same(kind: str, steps: list[int]) -> None:
    model = converted(kind)
    right = [written(model, kind, row).tolist() for row in range(2)]
    assert not steps
    generation.attach(model)
    for row in (0, 1, 0):
        assert written(model, kind, row).tolist() == right[row]
        assert steps == right[row][0][-10:-1]  # all but the first, which the prompt gives, and the last
        steps.clear()
    torch.manual_seed(0)
    sampled = written(model, kind, do_sample=True, temperature=2.0, repetition_penalty=1.3).tolist()
    del model.forward
    torch.manual_seed(0)
    assert written(model, kind, do_sample=True, temperature=2.0, repetition_penalty=1.3).tolist() == sampled


@pytest.mark.parametrize("kind", KINDS)
def test_the_cache_stays_true(kind: str, steps: list[int]) -> None:
    """What transformers finds in it after steps is what it would have put there; others' is not written to."""
    model = converted(kind)
    plain = written(model, kind, return_dict_in_generate=True)
    generation.attach(model)
    ours = written(model, kind, return_dict_in_generate=True)
    before = copy.deepcopy(ours.past_key_values)
    written(model, kind, 0)
    assert len(steps) == 18
    for found, right in ((ours.past_key_values, plain.past_key_values), (ours.past_key_values, before)):
        for a, b in zip(found, right, strict=True):
            for x, y in zip(a, b, strict=True):
                assert (x is None) == (y is None)
                if isinstance(x, Tensor):
                    torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_other_calls_are_transformers(kind: str, steps: list[int]) -> None:
    model = converted(kind)
    beams = written(model, kind, num_beams=3).tolist()
    states = written(model, kind, return_dict_in_generate=True, output_hidden_states=True)
    generation.attach(model)
    assert written(model, kind, num_beams=3).tolist() == beams
    again = written(model, kind, return_dict_in_generate=True, output_hidden_states=True)
    assert again.keys() == states.keys()
    assert again.sequences.tolist() == states.sequences.tolist()
    written(model, kind, use_cache=False)
    assert not steps
    ids = "input_ids" if kind == "llama" else "decoder_input_ids"
    with torch.no_grad():
        cache = model(**inputs(kind), use_cache=True).past_key_values
        with pytest.raises(IndexError):
            model(
                **inputs(kind) | {ids: torch.tensor([[model.config.vocab_size]])}, past_key_values=cache, use_cache=True
            )
    assert not steps


def test_a_masked_past_or_another_position_is_no_step(steps: list[int]) -> None:
    model = generation.attach(converted("llama"))
    ids_1T, token = torch.tensor([[5, 9, 2, 60]]), torch.tensor([[7]])
    mask = torch.tensor([[0, 1, 1, 1, 1]])
    for changes in ({"attention_mask": mask}, {"position_ids": torch.tensor([[9]])}, {"labels": token}):
        with torch.no_grad():
            cache = model(input_ids=ids_1T, use_cache=True).past_key_values
            model(input_ids=token, past_key_values=cache, use_cache=True, **changes)
    assert not steps


def test_a_source_of_padding_is_no_step(steps: list[int]) -> None:
    model = generation.attach(converted("t5"))
    given = inputs("t5")
    given["attention_mask"] = torch.zeros_like(given["attention_mask"])
    model.generate(**given, max_new_tokens=4)
    assert not steps


def test_beyond_the_step_s_context_transformers_goes_on(monkeypatch: pytest.MonkeyPatch, steps: list[int]) -> None:
    model = converted("t5")
    right = written(model, "t5").tolist()
    monkeypatch.setattr(generation, "MAX_CONTEXT", 5)
    generation.attach(model)
    assert written(model, "t5").tolist() == right
    assert len(steps) == 4  # a prompt of one


def test_a_copy_of_a_model_is_a_model_of_its_own(steps: list[int]) -> None:
    model = generation.attach(converted("whisper"))
    before = written(model, "whisper").tolist()
    other = copy.deepcopy(model)
    assert other.forward._model is other
    with torch.no_grad():
        other.model.decoder.layer_norm.bias.normal_(std=9)
    assert written(other, "whisper").tolist() != before
    assert written(model, "whisper").tolist() == before
    assert len(steps) == 27


def test_loaded_models_take_compiled_steps_unless_told(tmp_path: Path, steps: list[int]) -> None:
    engine.save(converted("t5"), tmp_path / "t5")
    right = written(engine.load(tmp_path / "t5", compiled_steps=False), "t5").tolist()
    assert not steps
    assert written(engine.load(tmp_path / "t5"), "t5").tolist() == right
    assert len(steps) == 9
    engine.save(engine.convert(tiny.build("opt"), dtype="fp32"), tmp_path / "opt")
    written(engine.load(tmp_path / "opt"), "llama")
    assert len(steps) == 9
