"""Items as a model reads them: what is learned, how rows are packed, where long items are cut, how they are asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers.processors import TemplateProcessing

from stages import tokens
from stages.contracts import Corpus, UserError
from stages.items import chat
from stages.items.encoding import Items
from tests import tiny

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<eos>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TURNS = [
    {"role": "user", "content": "the river"},
    {"role": "assistant", "content": "holds water"},
    {"role": "user", "content": "and stone"},
    {"role": "assistant", "content": "near the city"},
]


def corpus(folder: Path, rows: list[dict[str, Any]], **facts: str) -> Corpus:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    known = {"format": "prompted", "digest": "d", "loss_on": "completion", **facts}
    (folder / "meta.json").write_text(json.dumps({"facts": known, "metrics": {}}))
    return Corpus(folder, "items")


def item(prompt: str, completion: str, number: int = 0, **more: Any) -> dict[str, Any]:
    return {"prompt": prompt, "completion": completion, "id": f"item {number}", **more}


@pytest.fixture
def tokenizer(tmp_path: Path) -> Any:
    return tiny.save_tokenizer(tmp_path / "tokenizer")


def with_bos(tokenizer: Any) -> Any:
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    bos = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", bos)])
    return tokenizer


def learned_text(encoded: Any, tokenizer: Any) -> str:
    return str(tokenizer.decode([i for i, learned in zip(encoded.ids, encoded.learned, strict=True) if learned]))


@pytest.mark.parametrize(
    ("loss_on", "learned"), [("completion", " holds water<eos>"), ("all", "the river holds water<eos>")]
)
def test_the_completion_and_the_end_are_learned_and_the_prompt_only_if_asked(
    tmp_path: Path, tokenizer: Any, loss_on: str, learned: str
) -> None:
    data = corpus(tmp_path / "data", [], loss_on=loss_on)
    encoded = Items(data, tokenizer).encode(item("the river", " holds water"), 64, "")
    assert learned_text(encoded, tokenizer) == learned


def test_a_token_across_the_border_is_learned(tmp_path: Path, tokenizer: Any) -> None:
    """`the ri` + `ver`: "river" may be one token, which is none of the prompt alone."""
    whole = tokenizer("the river")["input_ids"]
    assert tokenizer("the ri")["input_ids"] != whole[: len(tokenizer("the ri")["input_ids"])], "no such token here"
    encoded = Items(corpus(tmp_path / "data", []), tokenizer).encode(item("the ri", "ver"), 64, "")
    assert encoded is not None
    assert encoded.ids == [*whole, tokenizer.eos_token_id]
    assert encoded.learned == [False] * (len(whole) - 1) + [True, True]


def test_packed_rows_carry_the_mask_of_each_item(tmp_path: Path, tokenizer: Any) -> None:
    rows = [item("the river", " holds water", 0), item("a small city", " sings", 1), item("blue", " stone and red", 2)]
    data = corpus(tmp_path / "data", rows)
    encoder = Items(data, tokenizer)
    alone = [encoder.encode(row, 64, "") for row in rows]
    batch = tokens.training_rows(data, "train", tokenizer, 64, tiny.build(), "")
    assert len(batch["input_ids"]) == 1, "all in one row"
    at = 0
    for one in alone:
        assert one is not None
        span = slice(at, at + len(one.ids))
        assert batch["input_ids"][0, span].tolist() == one.ids
        expected = [i if learned else tokens.IGNORED for i, learned in zip(one.ids, one.learned, strict=True)]
        assert batch["labels"][0, span].tolist() == expected
        assert batch["position_ids"][0, span].tolist() == list(range(len(one.ids)))
        at += len(one.ids)
    assert batch["use"][0].sum() == at, "SquareHead compares prompts as well"
    apart = tokens.training_rows(data, "train", tokenizer, 64, tiny.build("opt"), "")
    assert len(apart["input_ids"]) == 3
    assert int((apart["labels"] >= 0).sum()) == int((batch["labels"] >= 0).sum())


def test_the_end_is_learned_where_padding_is_the_same_token(tmp_path: Path, tokenizer: Any) -> None:
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    data = corpus(tmp_path / "data", [item("the river", " holds")])
    batch = tokens.training_rows(data, "train", tokenizer, 32, tiny.build("opt"), "")
    labels = batch["labels"][0]
    assert int((labels == tokenizer.eos_token_id).sum()) == 1


def test_a_prompt_is_asked_as_it_was_learned(tmp_path: Path, tokenizer: Any) -> None:
    tokenizer = with_bos(tokenizer)
    items = Items(corpus(tmp_path / "data", []), tokenizer)
    row = item("the river\n", "holds water")
    encoded, asked = items.encode(row, 64, ""), items.ask(row, 64, "")
    assert encoded is not None
    assert encoded.ids[: len(asked.ids)] == asked.ids
    assert encoded.ids.count(tokenizer.bos_token_id) == 1 == asked.ids.count(tokenizer.bos_token_id)
    assert (asked.prompt, asked.reference) == ("the river\n", "holds water")


def test_the_article_is_cut_and_the_summary_never(tmp_path: Path, tokenizer: Any) -> None:
    article = " ".join(["the river holds water"] * 20)
    prompt = f"A:\n{article}\nS:\n"
    row = item(prompt, "a small city\n", cut=[3, 3 + len(article)])
    items = Items(corpus(tmp_path / "data", []), tokenizer)
    encoded = items.encode(row, 40, "")
    assert encoded is not None
    assert len(encoded.ids) == 40
    text = tokenizer.decode(encoded.ids)
    assert text.startswith("A:\nthe river")
    assert text.endswith("\nS:\na small city\n<eos>")
    assert tokenizer.decode(items.ask(row, 30, "").ids).endswith("\nS:\n")
    every = Items(corpus(tmp_path / "all", [], loss_on="all"), tokenizer).encode(row, 40, "")
    assert every is not None
    assert every.ids == encoded.ids
    assert all(every.learned)


def test_a_prompt_that_fills_the_row_is_refused_or_left_out(tmp_path: Path, tokenizer: Any) -> None:
    rows = [item("the river " * 30, "holds", 7), item("the", " river", 8)]
    with pytest.raises(UserError, match=r"item 7.*leaves no room.*too_long") as refused:
        tokens.training_rows(corpus(tmp_path / "a", rows), "train", tokenizer, 16, tiny.build(), "finetune.length")
    assert refused.value.option == "finetune.length"
    kept = tokens.training_rows(
        corpus(tmp_path / "b", rows, too_long="leave_out"), "train", tokenizer, 16, tiny.build(), ""
    )
    assert len(kept["input_ids"]) == 1
    with pytest.raises(UserError, match=r"item 7.*tokens; 16 fit"):
        Items(corpus(tmp_path / "c", []), tokenizer).ask(rows[0], 16, "evaluate")


def test_an_item_without_a_target_is_refused(tmp_path: Path, tokenizer: Any) -> None:
    items = Items(corpus(tmp_path / "data", []), tokenizer)
    with pytest.raises(UserError, match=r"item 3.*no target"):
        items.encode(item("the river", "", 3), 16, "")
    assert items.ask(item("the river", "", 3), 16, "").reference == ""


# ---- conversations ----


def conversation(folder: Path, template: str) -> Corpus:
    return corpus(folder, [], format="messages", template=template)


def test_zephyr_puts_an_empty_system_turn_first_and_learns_the_assistant(tmp_path: Path, tokenizer: Any) -> None:
    items = Items(conversation(tmp_path, "zephyr"), tokenizer)
    encoded = items.encode({"messages": TURNS, "id": "c"}, 200, "")
    assert encoded is not None
    assert tokenizer.decode(encoded.ids) == (
        "<|system|>\n<eos>\n<|user|>\nthe river<eos>\n<|assistant|>\nholds water<eos>\n"
        "<|user|>\nand stone<eos>\n<|assistant|>\nnear the city<eos>"
    )
    assert learned_text(encoded, tokenizer) == "holds water<eos>near the city<eos>"


def test_any_chat_template_teaches_the_assistants_turns(tmp_path: Path, tokenizer: Any) -> None:
    tokenizer = with_bos(tokenizer)
    tokenizer.chat_template = CHATML
    items = Items(conversation(tmp_path, "tokenizer"), tokenizer)
    row = {"messages": TURNS, "id": "c"}
    encoded = items.encode(row, 200, "")
    assert encoded is not None
    whole = tokenizer.apply_chat_template(TURNS, tokenize=True, return_dict=False)
    assert encoded.ids == whole[: len(encoded.ids)], "and no bos, which this template does not write"
    assert learned_text(encoded, tokenizer) == "holds water<eos>near the city<eos>"
    asked = items.ask(row, 200, "")
    assert asked.ids == tokenizer.apply_chat_template(
        TURNS[:-1], tokenize=True, add_generation_prompt=True, return_dict=False
    )
    assert encoded.ids[: len(asked.ids)] == asked.ids
    assert asked.reference == "near the city"
    opened = items.ask({"messages": TURNS[:1], "id": "c"}, 200, "")
    assert opened.prompt == "<|im_start|>user\nthe river<eos>\n<|im_start|>assistant\n"
    assert items.stops() == {tokenizer.eos_token_id}


def test_a_template_that_rewrites_earlier_turns_is_refused(tmp_path: Path, tokenizer: Any) -> None:
    tokenizer.chat_template = "{{ messages | length }}" + CHATML
    with pytest.raises(UserError, match=r"differently from the whole.*zephyr") as refused:
        chat.parts(TURNS, "tokenizer", tokenizer, "c")
    assert refused.value.option == "data.template"
    tokenizer.chat_template = "{{ raise_exception('no system turns') }}"
    with pytest.raises(UserError, match="refuses the conversation c: no system turns"):
        chat.parts(TURNS, "tokenizer", tokenizer, "c")
    tokenizer.chat_template = None
    with pytest.raises(UserError, match="no chat template"):
        chat.parts(TURNS, "tokenizer", tokenizer, "c")


def test_qa_of_older_versions_is_encoded_as_it_was(tmp_path: Path, tokenizer: Any) -> None:
    folder = tmp_path / "old"
    data = corpus(folder, [item("Question: the river?\nAnswer:", " water\n#### 3")], format="qa", loss_on="all")
    batch = tokens.training_rows(data, "train", tokenizer, 16, tiny.build(), "")
    ids = [*tokenizer("Question: the river?\nAnswer: water\n#### 3")["input_ids"], tokenizer.eos_token_id][:16]
    assert batch["input_ids"][0, : len(ids)].tolist() == ids
    assert torch.equal(batch["labels"][0, 1 : len(ids)], batch["input_ids"][0, 1 : len(ids)])
