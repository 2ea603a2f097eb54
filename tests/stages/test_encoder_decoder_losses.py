"""The losses of encoder-decoders: which tokens of which layers count, and gradients, against the definitions."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from stages import families
from stages.contracts import Checkpoint
from stages.devices import CPU
from stages.families import Batch
from stages.finetune.batches import micro_batches
from stages.finetune.distill import feature_tokens
from stages.finetune.objective import Objective
from stages.finetune.spec import Distill
from stages.finetune.teacher import Teacher
from tests import tiny_encoder_decoders as tiny_models
from tests.stage_options import distilling, training

KINDS = tiny_models.KINDS
BLOCKS = {
    "t5": ["encoder.block.0", "encoder.block.1", "decoder.block.0", "decoder.block.1"],
    "t5_gated": ["encoder.block.0", "encoder.block.1", "decoder.block.0"],
    "mt5": ["encoder.block.0", "encoder.block.1", "decoder.block.0", "decoder.block.1"],
    "whisper": [f"model.{stack}.layers.{i}" for stack in ("encoder", "decoder") for i in (0, 1)],
}


def family(kind: str) -> Any:
    return families.get(tiny_models.family(kind))


def student(kind: str) -> Any:
    return tiny_models.build(kind, seed=0)


def raw_states(kind: str, model: Any, batch: Batch) -> tuple[list[Tensor], Tensor]:
    """What each block puts out, and the model's own logits."""
    found: list[Tensor] = []

    def keep(module: Any, args: Any, output: Any) -> None:
        found.append(output[0] if isinstance(output, tuple) else output)

    with ExitStack() as stack:
        for name in BLOCKS[kind]:
            stack.callback(model.get_submodule(name).register_forward_hook(keep).remove)
        logits_BTV: Tensor = model(**family(kind).inputs(batch)).logits
    assert len(found) == len(BLOCKS[kind])
    return found, logits_BTV


@pytest.fixture(scope="module", params=KINDS)
def taught(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Teacher]:
    """A kind, and a teacher that gives all layers."""
    folder = tmp_path_factory.mktemp("teacher")
    tiny_models.build(request.param, seed=1).save_pretrained(folder)
    dense = Checkpoint(folder, "teacher")
    return request.param, Teacher(dense, family(request.param), training(), all_layers=True, device=CPU)


# ---- which tokens ----


def test_encoder_layers_compare_real_positions_and_decoder_layers_those_with_a_label() -> None:
    model = student("t5")
    batch = tiny_models.rows("t5", model).take(torch.tensor([1, 0]))
    # the start token is padding's id, and counts: it predicts the first label; the last token predicts eos
    assert batch["decoder_input_ids"][:, 0].tolist() == [0, 0]
    assert [row[length - 1] for row, length in zip(batch["labels"].tolist(), (6, 4), strict=True)] == [1, 1]
    *encoder, one, two, head = family("t5").feature_masks(model, batch)
    for mask_BS in encoder:
        assert mask_BS.tolist() == [[True] * 3 + [False] * 5, [True] * 7 + [False]]
    for mask_BT in (one, two):
        assert mask_BT.tolist() == [[True] * 6 + [False] * 2, [True] * 4 + [False] * 4]
        assert torch.equal(mask_BT, batch["labels"] != -100)
    assert (len(encoder), head) == (2, None)
    skipping = feature_tokens(family("t5"), model, batch, skip_first=1)
    assert [tokens_N.tolist() for tokens_N in skipping[:4:3] if tokens_N is not None] == [
        [1, 2, *range(9, 15)],
        [1, 2, 3, 4, 5, 9, 10, 11],
    ]


def test_clips_compare_their_own_positions_and_full_windows_all() -> None:
    model = student("whisper")
    for window, expected_BS in (
        ("clip", [[True] * 15 + [False] * 20, [True] * 35]),
        ("full", [[True] * tiny_models.POSITIONS] * 2),
    ):
        batch = tiny_models.rows("whisper", model, window).take(torch.tensor([1, 0]))
        # two positions are one frame of input
        assert batch["input_features"].shape[2] == 2 * len(expected_BS[0])
        masks = family("whisper").feature_masks(model, batch)
        assert [mask is None for mask in masks] == [False] * 4 + [True]
        assert [mask_BS.tolist() for mask_BS in masks[:2]] == [expected_BS] * 2
        assert [mask_BT.tolist() for mask_BT in masks[2:4]] == [
            [[True] * 6 + [False] * 2, [True] * 4 + [False] * 4]
        ] * 2


def test_a_token_of_whisper_is_padding_by_its_place_and_not_by_its_id() -> None:
    """Its pad token is eos."""
    model = student("whisper")
    rows = tiny_models.rows("whisper", model)
    examples = [{**rows.examples[0], "labels": [6, 0, 9, 0]}, {**rows.examples[1], "labels": [6, 0]}]
    batch = rows.family.collate(examples, 32, tiny_models.START, model.config)
    assert batch["decoder_input_ids"].tolist() == [[5, 6, 0, 9, *[0] * 4], [5, 6, *[0] * 6]]
    assert batch["labels"].tolist() == [[6, 0, 9, 0, *[-100] * 4], [6, 0, *[-100] * 6]]
    compared_BT = family("whisper").feature_masks(model, batch)[2]
    assert compared_BT.tolist() == [[True] * 4 + [False] * 4, [True] * 2 + [False] * 6]


def test_squarehead_is_the_sum_over_all_layers_of_the_ratio_over_the_real_tokens(taught: tuple[str, Teacher]) -> None:
    kind, teacher = taught
    model = student(kind)
    chosen_B = torch.tensor([1, 0])
    batch = tiny_models.rows(kind, model).take(chosen_B)
    sources = (15, 35) if kind == "whisper" else (3, 7)
    read = [(0, i) for i in range(sources[0])] + [(1, i) for i in range(sources[1])]
    written = [(0, 0), (0, 1), (0, 2), (0, 3), (0, 4), (0, 5), (1, 0), (1, 1), (1, 2), (1, 3)]
    with torch.no_grad():
        ours, theirs = raw_states(kind, model, batch)[0], raw_states(kind, teacher.model, batch)[0]
    expected = 0.0
    for name, s_BTD, t_BTD in zip(BLOCKS[kind], ours, theirs, strict=True):
        tokens = read if "encoder" in name else written
        assert s_BTD.shape[:2].numel() > len(tokens), "something is padded"
        error = sum(float((s_BTD[b, t] - t_BTD[b, t]).double().square().sum()) for b, t in tokens)
        expected += error / sum(float(t_BTD[b, t].double().square().sum()) for b, t in tokens)
    objective = Objective(family(kind), distilling(squarehead=1), "fp32", teacher)
    found = objective.backward(model, family(kind).head(model), [(chosen_B, batch)])
    assert float(found["squarehead"]) == float(found["loss"]) == pytest.approx(expected, rel=1e-5)


# ---- the whole loss ----


def the_loss(kind: str, model: Any, teacher: Any, batch: Batch, config: Distill) -> dict[str, Tensor]:
    """By the models' own forward, and torch's own losses."""
    states, logits_BTV = raw_states(kind, model, batch)
    with torch.no_grad():
        taught, taught_BTV = raw_states(kind, teacher, batch)
    learned_BT = batch["labels"] != -100
    read = {name: batch[name] for name in ("input_ids", "attention_mask", "input_features") if name in batch}
    soft = functional.softmax(taught_BTV[learned_BT] / config.temperature, dim=-1)
    log_soft = functional.log_softmax(logits_BTV[learned_BT] / config.temperature, dim=-1)
    # the model shifts the labels itself: no decoder inputs are given
    terms = {"ce": model(**read, labels=batch["labels"]).loss}
    terms["kd"] = config.temperature**2 * functional.kl_div(log_soft, soft, reduction="sum") / learned_BT.sum()
    masks = family(kind).feature_masks(model, batch)[:-1]
    layers = zip(states, taught, masks, strict=True)
    ratios = [(s - t)[mask].square().sum() / (t[mask].square().sum() + config.eps) for s, t, mask in layers]
    terms["squarehead"] = torch.stack(ratios).sum()
    terms = {name: term for name, term in terms.items() if getattr(config, name)}
    loss = torch.stack([getattr(config, name) * term for name, term in terms.items()]).sum()
    return {"loss": loss} | terms


def gradients(model: Any) -> dict[str, Tensor]:
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


@pytest.mark.parametrize(
    "losses",
    [{"ce": 1}, {"kd": 1}, {"squarehead": 1}, {"ce": 0.5, "kd": 0.7, "squarehead": 2, "temperature": 2, "eps": 1e-8}],
    ids=["ce", "kd", "squarehead", "mix"],
)
def test_micro_batches_add_up_to_the_loss_written_out(losses: Mapping[str, float], taught: tuple[str, Teacher]) -> None:
    """Against plain autograd over the batch in its own order, with all of its padding."""
    kind, teacher = taught
    model, config = student(kind), distilling(**losses)
    # the windows of clips, which are what Whisper hears, end with the longest clip of a micro-batch
    rows = tiny_models.rows(kind, model, "full")
    chosen_B = torch.tensor([3, 0, 2, 1])
    terms = the_loss(kind, model, teacher.model, rows.take(chosen_B), config)
    torch.autograd.backward(terms["loss"])
    whole = gradients(model)
    expected = {name: term.item() for name, term in terms.items()}
    largest = max(float(gradient.abs().max()) for gradient in whole.values())
    head = family(kind).head(model)
    for size, count in ((1, 4), (2, 2)):
        micro = list(micro_batches(rows, chosen_B, size))
        assert len(micro) == count
        found = Objective(family(kind), config, "fp32", teacher).backward(model, head, micro)
        assert {name: term.item() for name, term in found.items()} == pytest.approx(expected, rel=1e-5)
        parts = gradients(model)
        # features end where the last block does: the norm and the head that follow learn nothing from them
        assert parts.keys() == whole.keys()
        torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-6 * largest)


def test_the_kinds_of_t5_differ_in_their_heads() -> None:
    """T5's reads scaled states, the others theirs as they are; that of T5 v1.1 is no embedding."""
    tied, own = student("t5"), student("t5_gated")
    assert (tied.config.scale_decoder_outputs, own.config.scale_decoder_outputs) == (True, False)
    assert tied.lm_head.weight is tied.shared.weight
    assert own.lm_head.weight is not own.shared.weight
