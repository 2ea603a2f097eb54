"""Token streams: BOS as the tokenizer has it, and windows as the published scripts cut them, written out here."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from stages import json_lines, tokens
from stages.contracts import Corpus, UserError
from tests import tiny


@pytest.fixture
def texts(tmp_path: Path) -> Corpus:
    tiny.save_texts(tmp_path / "texts", train=60, others=60)
    (tmp_path / "texts" / "meta.json").write_text(json.dumps({"facts": {"format": "text", "digest": "0" * 64}}))
    return Corpus(tmp_path / "texts", "x")


def with_bos(folder: Path) -> Any:
    inner = tiny.save_tokenizer(folder)._tokenizer
    inner.add_special_tokens(["<bos>"])
    bos = inner.token_to_id("<bos>")
    inner.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", bos)])
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<bos>", eos_token="<eos>", pad_token="<eos>")


def rows_of(data: Corpus, split: str) -> list[str]:
    return [row["text"] for row in json_lines.read(data.split(split))]


def test_a_published_stream_begins_with_bos_once(texts: Corpus, tmp_path: Path) -> None:
    tokenizer = with_bos(tmp_path / "t")
    found = tokens.stream(texts, "test", tokenizer, 32, "x", bos="stream")
    # as the evaluation of the released code of SparseGPT and Wanda does
    testenc = tokenizer("\n\n".join(rows_of(texts, "test")), return_tensors="pt").input_ids
    nsamples = testenc.numel() // 32
    expected = torch.cat([testenc[:, i * 32 : (i + 1) * 32] for i in range(nsamples)])
    assert torch.equal(found, expected)


def test_every_window_begins_with_bos_and_no_token_is_lost(texts: Corpus, tmp_path: Path) -> None:
    tokenizer = with_bos(tmp_path / "t")
    found = tokens.stream(texts, "test", tokenizer, 32, "x")
    assert set(found[:, 0].tolist()) == {tokenizer.bos_token_id}
    whole = tokenizer("\n\n".join(rows_of(texts, "test")), add_special_tokens=False)["input_ids"]
    assert found[:, 1:].flatten().tolist() == whole[: len(found) * 31]


def test_training_rows_begin_as_evaluation_does(texts: Corpus, tmp_path: Path) -> None:
    tokenizer = with_bos(tmp_path / "t")
    rows = tokens.training_rows(texts, "train", tokenizer, 32, tiny.build(), "x")
    assert set(rows["input_ids"][:, 0].tolist()) == {tokenizer.bos_token_id}


def test_without_bos_both_are_the_same(texts: Corpus, tmp_path: Path) -> None:
    tokenizer = tiny.save_tokenizer(tmp_path / "t")
    assert tokens.prefix(tokenizer) == []
    assert torch.equal(
        tokens.stream(texts, "test", tokenizer, 32, "x"), tokens.stream(texts, "test", tokenizer, 32, "x", bos="stream")
    )


def test_c4_for_validation_is_the_first_documents_joined_by_spaces(texts: Corpus, tmp_path: Path) -> None:
    tokenizer = tiny.save_tokenizer(tmp_path / "t")
    found = tokens.stream(texts, "validation", tokenizer, 32, "x", bos="stream", joined_by=" ", documents=11)
    valenc = tokenizer(" ".join(rows_of(texts, "validation")[:11]), return_tensors="pt").input_ids
    assert torch.equal(found.flatten(), valenc[0, : found.numel()])
    with pytest.raises(UserError, match="has 60 rows, not 61"):
        tokens.stream(texts, "validation", tokenizer, 32, "x", documents=61)


def test_c4_for_calibration_is_drawn_from_long_documents(texts: Corpus, tmp_path: Path) -> None:
    tokenizer = with_bos(tmp_path / "t")
    seqlen, traindata = 28, rows_of(texts, "train")
    lengths = [len(tokenizer(text)["input_ids"]) for text in traindata]
    assert min(lengths) <= seqlen < max(lengths), "the documents are to differ"
    # get_c4 of the released code of Wanda
    draw = random.Random(3)
    expected = []
    for _ in range(16):
        while True:
            i = draw.randint(0, len(traindata) - 1)
            trainenc = tokenizer(traindata[i], return_tensors="pt")
            if trainenc.input_ids.shape[1] > seqlen:
                break
        i = draw.randint(0, trainenc.input_ids.shape[1] - seqlen - 1)
        expected.append(trainenc.input_ids[0, i : i + seqlen])
    found = tokens.document_windows(texts, "train", tokenizer, seqlen, 16, 3, "x")
    assert torch.equal(found, torch.stack(expected))
    with pytest.raises(UserError, match="no document"):
        tokens.document_windows(texts, "train", tokenizer, 300, 1, 0, "x")
