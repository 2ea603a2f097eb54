"""Folders of models that are not what they seem: weights of other kinds, tokens without an embedding."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoTokenizer

from stages.contracts import UserError
from stages.model import run as model
from stages.model.spec import ModelOptions
from tests import tiny
from tests.recording import RecordingLog

Q_PROJ = "model.layers.0.self_attn.q_proj.weight"


def imported(folder: Path) -> RecordingLog:
    out, log = folder.parent / "out", RecordingLog(folder.parent / "log")
    out.mkdir()
    model.run(ModelOptions(path=str(folder), revision="", family="causal_lm", dtype="float32"), {}, out, log)
    return log


def with_weights(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Path:
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("kind", ["int8", "uint8", "int32", "bool", "float8_e4m3fn", "float8_e5m2"])
@pytest.mark.parametrize("name", [Q_PROJ, "model.norm.weight"])
def test_a_weight_that_stands_for_a_number_by_a_scale_is_refused(name: str, kind: str, tmp_path: Path) -> None:
    folder = tiny.save_model(tmp_path / "m")
    with_weights(folder, lambda found: {**found, name: found[name].to(getattr(torch, kind))})
    with pytest.raises(UserError, match=rf"{name} is stored as") as caught:
        imported(folder)
    assert caught.value.option == "model.path"


def test_experts_in_one_tensor_are_weights_too(tmp_path: Path) -> None:
    from transformers import GptOssConfig, GptOssForCausalLM

    sizes = {"vocab_size": 320, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "head_dim": 8}
    config = GptOssConfig(**sizes, num_attention_heads=4, num_key_value_heads=2, num_local_experts=4)
    folder = tmp_path / "m"
    GptOssForCausalLM(config).save_pretrained(folder)
    tiny.save_tokenizer(folder)
    with_weights(
        folder, lambda found: {n: W.to(torch.int8) if n.endswith("experts.down_proj") else W for n, W in found.items()}
    )
    with pytest.raises(UserError, match=r"experts\.down_proj is stored as I8"):
        imported(folder)


@pytest.mark.parametrize("kind", ["float16", "bfloat16", "float64"])
def test_weights_of_16_to_64_bits_are_read(kind: str, tmp_path: Path) -> None:
    folder = tiny.save_model(tmp_path / "m")
    with_weights(folder, lambda found: {name: W.to(getattr(torch, kind)) for name, W in found.items()})
    assert imported(folder).found["prunable_share"] == 1


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    folder = tiny.save_model(tmp_path / "m")
    _shrink(folder, 100)
    with pytest.raises(UserError, match=r"the model has embeddings for 100 tokens, its tokenizer has .* as number 100"):
        imported(folder)


@pytest.mark.parametrize("role", ["pad_token", "eos_token", ""])
def test_an_added_token_may_have_no_embedding_unless_texts_end_with_it(role: str, tmp_path: Path) -> None:
    folder = tiny.save_model(tmp_path / "m")
    tokenizer = tiny.save_tokenizer(folder)
    _shrink(folder, len(tokenizer))
    tokenizer.add_special_tokens({role: "<new>"} if role else {"additional_special_tokens": ["<new>"]})
    tokenizer.save_pretrained(folder)
    if role == "eos_token":
        with pytest.raises(UserError, match="its tokenizer has '<new>'"):
            imported(folder)
        return
    log = imported(folder)
    assert any("<new>" in line and "'<eos>' pads" in line for line in log.notes) == (role == "pad_token")
    saved = AutoTokenizer.from_pretrained(log.resume.parent / "out")
    assert saved.pad_token == "<eos>"


def _shrink(folder: Path, rows: int) -> None:
    embedding = "model.embed_tokens.weight"
    with_weights(folder, lambda found: {**found, embedding: found[embedding][:rows].clone()})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": rows}))


@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
@pytest.mark.parametrize("content", ["{", "[]", "null", ""])
def test_settings_that_cannot_be_read_are_refused(file: str, content: str, tmp_path: Path) -> None:
    folder = tiny.save_model(tmp_path / "m")
    (folder / file).write_text(content)
    with pytest.raises(UserError, match=f"{file} (is not JSON|holds a)") as caught:
        imported(folder)
    assert caught.value.option == "model.path"


@pytest.mark.parametrize("odd", [{"return_dict": False}, {"output_attentions": True}, {"output_hidden_states": True}])
def test_the_form_of_outputs_is_not_the_model_s(odd: dict[str, bool], tmp_path: Path) -> None:
    folder = tiny.save_model(tmp_path / "m")
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | odd))
    imported(folder)
    stored = json.loads((tmp_path / "out" / "config.json").read_text())
    assert stored.get(*odd) in (None, not odd[next(iter(odd))])
