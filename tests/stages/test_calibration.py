"""Calibration samples: windows of text, items, their seed, and what there is not enough of."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from stages.calibrate import run as calibrate
from stages.calibrate.samples import load_samples
from stages.contracts import UserError
from tests import tiny
from tests.running_stages import calibrated
from tests.tiny import checkpoint, text_data
from tests.tiny_training import FAMILY, qa_data


def test_text_samples_are_different_windows_without_padding(tmp_path: Path) -> None:
    model, data = checkpoint(tmp_path), text_data(tmp_path / "texts")
    calibration, log = calibrated(tmp_path, model, data)
    samples = load_samples(calibration)
    ids_NL, use_NL = samples["input_ids"], samples["use"]
    assert ids_NL.shape == use_NL.shape == (8, 32)
    assert use_NL.all()
    assert torch.equal(samples["labels"], ids_NL)
    assert {tensor.dtype for tensor in samples.values()} == {torch.int64}
    assert len(ids_NL.unique(dim=0)) == 8
    found = log.found
    assert (found["samples"], found["length"], found["real_tokens"]) == (8, 32, 256)
    assert found["data_digest"] == "of the data"
    assert found["samples_digest"] == calibrate.digest(samples)


def test_the_seed_draws_the_samples(tmp_path: Path) -> None:
    model, data = checkpoint(tmp_path), text_data(tmp_path / "texts")
    drawn = []
    for turn, seed in enumerate((0, 0, 1)):
        (tmp_path / str(turn)).mkdir()
        drawn.append(calibrated(tmp_path / str(turn), model, data, seed=seed)[1])
    digests = [log.found["samples_digest"] for log in drawn]
    assert digests[0] == digests[1] != digests[2]


def test_items_are_ended_by_eos_and_padded_on_the_right(tmp_path: Path) -> None:
    model, data = checkpoint(tmp_path), qa_data(tmp_path / "questions")
    calibration, log = calibrated(tmp_path, model, data, length=40)
    samples = load_samples(calibration)
    ids_NL, mask_NL = samples["input_ids"], samples["attention_mask"]
    assert torch.equal(samples["use"], mask_NL)
    assert "position_ids" not in samples, "one item a sample"
    tokenizer = FAMILY.tokenizer(model.path)
    texts = {row["prompt"] + row["completion"] for row in map(json.loads, data.split("train").open())}
    for ids, mask in zip(ids_NL, mask_NL, strict=True):
        length = int(mask.sum())
        assert mask[:length].all()
        assert ids[length - 1] == tokenizer.eos_token_id
        assert tokenizer.decode(ids[: length - 1]) in texts
    assert log.found["real_tokens"] == int(mask_NL.sum()) < ids_NL.numel()


def test_too_few_samples_and_too_long_ones_are_refused(tmp_path: Path) -> None:
    model, data = checkpoint(tmp_path), text_data(tmp_path / "texts")
    for changes, option in (
        ({"samples": 10_000}, "calibrate.samples"),
        ({"length": tiny.CONTEXT + 1}, "calibrate.length"),
    ):
        with pytest.raises(UserError) as raised:
            calibrated(tmp_path, model, data, **changes)
        assert raised.value.option == option
