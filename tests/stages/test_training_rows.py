"""What training reads: steps and their learning rates, the order of rows, packing and padding."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from tokenizers.processors import TemplateProcessing

from stages.contracts import Checkpoint, UserError
from stages.families.causal_lm import TensorRows
from stages.finetune import batches, objective
from stages.finetune.optim import learning_rate
from stages.tokens import training_rows
from tests import tiny
from tests.running_stages import finetuned
from tests.stage_options import finetuning, training
from tests.tiny_training import FAMILY, qa_data, sparse


def test_learning_rate_closed_form() -> None:
    config = training(lr=1.0, warmup_steps=3)
    rates = [learning_rate(step, 11, config) for step in range(12)]
    assert rates == pytest.approx([0.25, 0.5, 0.75, 1.0, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8, 0])
    cosine = training(lr=2.0, warmup_steps=0, decay="cosine")
    assert [learning_rate(step, 4, cosine) for step in (0, 1, 2, 4)] == pytest.approx(
        [2, 1 + math.sqrt(0.5), 1, 0], abs=1e-12
    )
    constant = training(lr=2.0, warmup_steps=1, decay="constant")
    assert [learning_rate(step, 4, constant) for step in range(4)] == [1, 2, 2, 2]


def test_epochs_become_steps_by_rows() -> None:
    assert batches.count_steps(training(steps=0, epochs=2), 10) == 5  # 20 rows in batches of 4
    assert batches.count_steps(training(steps=0, epochs=0.5), 10) == 2
    assert batches.count_steps(training(steps=7), 10) == 7


def test_every_epoch_is_a_shuffle_of_all_rows_and_begins_alike_whatever_its_length() -> None:
    long = batches.order(10, 35, seed=5)
    assert torch.equal(batches.order(10, 12, seed=5), long[:12])
    epochs = [long[:10], long[10:20], long[20:30]]
    assert all(sorted(epoch.tolist()) == list(range(10)) for epoch in epochs)
    assert not torch.equal(epochs[0], epochs[1])
    assert not torch.equal(batches.order(10, 10, seed=6), epochs[0])


def test_grouping_by_length_moves_rows_between_neighbouring_steps_only() -> None:
    sizes_R = torch.arange(100) % 10
    order_N = batches.order(100, 3 * batches.STEPS_GROUPED * 4, seed=5)
    grouped_N = batches.grouped(order_N, sizes_R, 4, seed=5)
    assert torch.equal(grouped_N, batches.grouped(order_N, sizes_R, 4, seed=5))
    assert not torch.equal(grouped_N, batches.grouped(order_N, sizes_R, 4, seed=6))
    span = batches.STEPS_GROUPED * 4
    for some_N, instead_N in zip(order_N.split(span), grouped_N.split(span), strict=True):
        assert sorted(some_N.tolist()) == sorted(instead_N.tolist())
        steps_SB = sizes_R[instead_N].view(-1, 4)
        assert (steps_SB.max(1).values - steps_SB.min(1).values).max() <= 1
        assert not torch.equal(steps_SB[:, 0].sort().values, steps_SB[:, 0])


@pytest.mark.parametrize("kind", ["llama", "opt"])
def test_packed_rows_have_the_loss_of_their_items(kind: str, tmp_path: Path) -> None:
    """What a token sees and is taught does not depend on its neighbours in the row; OPT, which takes positions but does
    not look there for where an item begins, gets rows of one item."""
    data, folder = qa_data(tmp_path / "qa"), tiny.save_model(tmp_path / "m", kind)
    model, tokenizer = FAMILY.load(folder), FAMILY.tokenizer(folder)
    packed = training_rows(data, "train", tokenizer, 48, model, "")
    items = [(row["prompt"] + row["completion"]) for row in map(json.loads, data.split("train").open())]
    assert len(packed["input_ids"]) < len(items) / 2 if kind == "llama" else len(packed["input_ids"]) == len(items)
    assert ("position_ids" in packed) == (kind == "llama")
    head, total, count = FAMILY.head(model), 0.0, 0
    for item in items:
        ids_BT = torch.tensor([[*tokenizer(item)["input_ids"], tokenizer.eos_token_id]])
        learned = ids_BT.shape[1] - 1
        total += model(input_ids=ids_BT, labels=ids_BT).loss.item() * learned
        count += learned
    rows = TensorRows(packed, FAMILY)
    found = objective.validation_loss(model, head, FAMILY, rows, len(rows), 2, "fp32")
    assert found == pytest.approx(total / count, rel=1e-5)


def test_items_begin_and_end_as_the_tokenizer_has_it_in_evaluation(tmp_path: Path) -> None:
    data, folder = qa_data(tmp_path / "qa"), tiny.save_model(tmp_path / "m")
    model, tokenizer = FAMILY.load(folder), FAMILY.tokenizer(folder)
    plain = training_rows(data, "train", tokenizer, 48, model, "", packed=False)
    bos, eos = 5, tokenizer.eos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="bos $A", special_tokens=[("bos", bos)])
    begun = training_rows(data, "train", tokenizer, 48, model, "", packed=False)
    assert begun["input_ids"][:, 0].tolist() == [bos] * len(begun["input_ids"])
    assert torch.equal(begun["input_ids"][:, 1:], plain["input_ids"][:, :-1])
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="$A eos", special_tokens=[("eos", eos)])
    ended = training_rows(data, "train", tokenizer, 48, model, "", packed=False)
    assert torch.equal(ended["input_ids"], plain["input_ids"]), "one eos is enough"
    tokenizer.eos_token = None
    with pytest.raises(UserError, match="no end of sequence"):
        training_rows(data, "train", tokenizer, 48, model, "", packed=False)


def test_mpt_trains_on_padded_items(tmp_path: Path) -> None:
    inputs = {
        "model": sparse(tmp_path / "sparse", "mpt"),
        "teacher": Checkpoint(tiny.save_model(tmp_path / "dense", "mpt", seed=1), "dense"),
        "data": qa_data(tmp_path / "qa"),
    }
    metrics, _, log = finetuned(finetuning(steps=20, sequence_length=48), inputs, tmp_path)
    assert metrics["validation_loss"] < log.points[0][1]["loss_ce"] - 0.5
