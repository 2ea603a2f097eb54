"""What one short forward pass tells of a model: linears to leave alone, and models that cannot be used."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import engine
from engine import kernels
from engine.errors import EngineError
from engine.reach import not_replaceable
from stages import families
from stages.contracts import Checkpoint, UserError
from stages.families import structure
from stages.finetune.early import check_training
from stages.model import run as source
from tests import tiny, tiny_causal, zoo_sizes
from tests.composed import config_of
from tests.recording import RecordingLog

family = families.get("causal_lm")
needs_kernels = pytest.mark.skipif(bool(kernels.unavailable()), reason="without kernels")


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=torch.arange(1, 25).view(2, 12), use_cache=False).logits
    return found.float()


def imported(model: Any, folder: Path) -> Checkpoint:
    model.save_pretrained(folder / "hub")
    tiny.save_tokenizer(folder / "hub")
    (folder / "m").mkdir()
    config = config_of(f"model.path={folder / 'hub'}", "model.dtype=float32").model
    source.run(config, {}, folder / "m", RecordingLog(folder / "log"))
    return Checkpoint(folder / "m", "m")


def _into_dtype_of(attribute: str) -> Callable[..., Any]:
    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        x = x.to(getattr(self, attribute).weight.dtype)
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))  # type: ignore[no-any-return]

    return forward


@needs_kernels
@pytest.mark.parametrize("attribute", ["gate_proj", "up_proj"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_linear_whose_weight_is_read_is_left_alone(
    attribute: str, dtype: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.models.llama.modeling_llama.LlamaMLP.forward", _into_dtype_of(attribute))
    model = tiny_causal.build("llama_grouped")
    names = {f"model.layers.{i}.mlp.{attribute}" for i in range(2)}
    assert family.left_alone(model) == dict.fromkeys(names, "its weight is read outside of its call")
    assert not names & family.prunable(model).keys()
    expected = logits(model)
    found = logits(engine.convert(model, dtype=dtype))
    assert float((found - expected).abs().max() / expected.abs().max()) < (1e-5 if dtype == "fp32" else 0.05)


def test_the_probe_leaves_the_classes_of_linears_as_they_are() -> None:
    model = tiny_causal.build("llama_grouped")
    kinds = [type(module) for module in model.modules()]
    not_replaceable(model)
    assert [type(module) for module in model.modules()] == kinds


@needs_kernels
@pytest.mark.parametrize("model_type", ["hy_v4", "mamba", "jamba"])
def test_the_engine_keeps_what_it_cannot_replace(model_type: str) -> None:
    model = zoo_sizes.build(model_type)
    expected = logits(model)
    torch.testing.assert_close(logits(engine.convert(model, dtype="fp32")), expected, rtol=1e-3, atol=1e-4)


@needs_kernels
def test_the_engine_refuses_a_head_whose_weight_is_read() -> None:
    with pytest.raises(EngineError, match=r"head cannot be converted: its weight is read .*; leave head at fp32"):
        engine.convert(zoo_sizes.build("mamba"), dtype="fp32", head="int8")
    tied = tiny_causal.build("gpt2")
    expected = logits(tied)
    found = logits(engine.convert(tied, dtype="fp32", head="int8"))
    assert float((found - expected).abs().max() / expected.abs().max()) < 0.05


def test_linears_that_share_a_weight_are_left_alone() -> None:
    model = tiny_causal.build("llama_grouped")
    first, second = (layer.self_attn for layer in model.model.layers)
    second.o_proj.weight = first.o_proj.weight
    found = family.left_alone(model)
    assert found["model.layers.0.self_attn.o_proj"] == "its weight is that of model.layers.1.self_attn.o_proj too"
    assert len(found) == 2


@pytest.mark.parametrize(
    ("model_type", "settings"),
    [("bert", {"is_decoder": False}), ("roformer", {"is_decoder": False}), ("xlnet", {"attn_type": "bi"})],
)
def test_a_model_that_sees_what_it_predicts_is_refused(
    model_type: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    causal = zoo_sizes.build(model_type)
    structure.of(causal, family)
    config = copy.deepcopy(causal.config)
    config.update(settings)
    torch.manual_seed(0)
    with pytest.raises(UserError, match="sees the tokens that it should predict") as caught:
        imported(type(causal)(config), tmp_path)
    assert caught.value.option == "model.path"
    assert not list((tmp_path / "m").iterdir())


@pytest.mark.parametrize("rescale_every", [1, 6])
def test_a_model_that_changes_its_weights_is_refused_before_it_is_saved(rescale_every: int, tmp_path: Path) -> None:
    model = zoo_sizes.build("rwkv")
    model.config.rescale_every = rescale_every
    with pytest.raises(UserError, match="RwkvForCausalLM changes its own weights when it runs") as caught:
        imported(model, tmp_path)
    assert caught.value.option == "model.path"
    assert not list((tmp_path / "m").iterdir())


def test_the_probe_changes_nothing_that_is_saved(tmp_path: Path) -> None:
    model = zoo_sizes.build("rwkv")
    model.config.rescale_every = 0
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    after = family.load(imported(model, tmp_path).path).state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_a_buffer_that_counts_the_passes_is_noticed() -> None:
    model = tiny_causal.build("llama_grouped")
    model.model.register_buffer("passes", torch.zeros(1))

    def count(module: Any, args: Any) -> None:
        module.passes.add_(1)

    model.model.register_forward_pre_hook(count)
    with pytest.raises(UserError, match=r"for example model\.passes"):
        structure.of(model, family)


def test_a_model_without_a_list_of_blocks_is_refused() -> None:
    """BLT has an encoder, a decoder and a patcher of bytes; no number of blocks is that of the model."""
    with pytest.raises(UserError, match="found no list of its blocks in BltForCausalLM") as caught:
        structure.of(zoo_sizes.build("blt"), family)
    assert caught.value.option == "model.path"


def test_blocks_in_several_lists_are_refused() -> None:
    with pytest.raises(UserError, match=r"keeps each block in several lists, such as transformer\.attentions"):
        structure.of(zoo_sizes.build("xlm"), family)


def test_blocks_are_those_of_the_language_model() -> None:
    """GIT's image encoder has as many blocks here, and comes first."""
    assert family.blocks(zoo_sizes.build("git"))[0][0] == "git.encoder.layer.0"


def test_a_model_that_cannot_run_in_training_is_told_before_it() -> None:
    found = structure.of(zoo_sizes.build("reformer"), family)
    assert "axial_pos_shape" in found.refused["training"]
    training = config_of("data=text", "data.path=x", "model.path=x").finetune
    with pytest.raises(UserError, match="cannot run in training") as caught:
        check_training(training.model_copy(update={"sequence_length": 32}), "finetune", found)
    assert caught.value.option == "model.path"


def test_unlimited_positions_are_no_context() -> None:
    assert family.context(zoo_sizes.build("xlnet")) == families.UNLIMITED
