"""Data of tasks: prompt formats, conversations, unfolded trees, generated items, real samples where they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from stages import json_lines
from stages.contracts import UserError
from stages.data import chitchat
from stages.data import run as data
from stages.data.generators import GENERATORS
from stages.data.generators.chain_arithmetic import solved
from stages.data.rows import Row
from stages.data.spec import Data
from stages.data.unfold import UNFOLDS
from tests import tiny_packages
from tests.composed import CONF
from tests.recording import RecordingLog

SHARED = CONF.parents[1] / "shared" / "data"
DATA = sorted(path.stem for path in (CONF / "data").glob("*.yaml"))


def options(group: str, **changes: Any) -> Data:
    settings = yaml.safe_load((CONF / "data" / f"{group}.yaml").read_text())
    return Data.model_validate({**settings, **changes})


def made(tmp_path: Path, config: Data) -> tuple[dict[str, list[dict[str, Any]]], RecordingLog]:
    out, log = tmp_path / "out", RecordingLog(tmp_path / "resume")
    out.mkdir()
    data.run(config, {}, out, log)
    splits = {path.stem: list(json_lines.read(path)) for path in out.glob("*.jsonl")}
    return splits, log


def written(folder: Path, *rows: dict[str, Any]) -> str:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_alpacas_prompt_has_an_input_only_where_there_is_one(tmp_path: Path) -> None:
    rows = [
        {"instruction": "Add.", "input": "1 and 2", "output": "3"},
        {"instruction": "Sing.", "input": "", "output": "La."},
        {"instruction": "Nothing.", "input": "", "output": " "},
    ]
    found, log = made(tmp_path, options("instructions", path=written(tmp_path, *rows), fractions=[1, 0, 0]))
    first, second = found["train"]
    begin = "Below is an instruction that describes a task. Write a response that appropriately completes the request."
    assert first["prompt"] == f"{begin}\n\n### Instruction:\nAdd.\n\n### Input:\n1 and 2\n\n### Response:\n"
    assert second["prompt"] == f"{begin}\n\n### Instruction:\nSing.\n\n### Response:\n"
    assert (first["completion"], second["completion"]) == ("3", "La.")
    assert log.found["loss_on"] == "completion"
    assert "left out 1 rows without text" in log.notes


def test_a_summary_says_what_of_its_prompt_may_be_cut(tmp_path: Path) -> None:
    path = written(tmp_path, {"article": "It rained.", "highlights": "Rain", "id": "a"})
    found, _ = made(tmp_path, options("summaries", path=path, fractions=[1, 0, 0]))
    (row,) = found["train"]
    assert row["prompt"] == "Article:\nIt rained.\n\n### Summarization:\n"
    assert row["prompt"][slice(*row["cut"])] == "It rained."
    assert row["completion"] == "Rain\n"


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"article": "article", "id": "id"}, r"summary needs columns for \['article', 'id', 'summary'\]"),
        ({"article": "a", "summary": "s", "id": "i", "title": "t"}, "summary needs columns"),
    ],
)
def test_columns_that_do_not_fit_the_prompt_are_refused(columns: dict[str, str], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        options("summaries", path="x", columns=columns)


def test_conversations_are_checked(tmp_path: Path) -> None:
    good = {"messages": [{"role": "user", "content": " Hi "}, {"role": "assistant", "content": "Hello"}]}
    mute = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": ""}]}
    found, log = made(tmp_path, options("messages", path=written(tmp_path, good, mute), fractions=[1, 0, 0]))
    assert found["train"] == [
        {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}], "id": "Hi"}
    ]
    assert log.found["template"] == "zephyr"
    bad = written(tmp_path, {"messages": [{"role": "robot", "content": "Hi"}]})
    (tmp_path / "again").mkdir()
    with pytest.raises(UserError, match="role of system, user, assistant"):
        made(tmp_path / "again", options("messages", path=bad))


TREE = {
    "message_tree_id": "t",
    "prompt": {
        "role": "prompter", "text": "Hi?", "replies": [
            {"role": "assistant", "text": "second", "rank": 1, "replies": []},
            {"role": "assistant", "text": "best", "rank": 0, "replies": [
                {"role": "prompter", "text": "And?", "replies": [
                    {"role": "assistant", "text": "so", "rank": None, "replies": []}]}]},
            {"role": "assistant", "text": "a model's", "synthetic": True, "rank": 2, "replies": []},
        ]},
}  # fmt: skip


def test_trees_are_unfolded_into_threads_and_into_ranked_replies() -> None:
    threads = [row.values["messages"] for row in UNFOLDS.get("oasst_threads")(Row("t:1", TREE))]
    assert [[turn["content"] for turn in messages] for messages in threads] == [
        ["Hi?", "second"], ["Hi?", "best", "And?", "so"]
    ]  # fmt: skip
    assert [turn["role"] for turn in threads[1]] == ["user", "assistant", "user", "assistant"]
    (ranked,) = UNFOLDS.get("oasst_replies")(Row("t:1", TREE))
    assert ranked.values["replies"] == ["best", "second"]
    assert ranked.values["messages"] == [{"role": "user", "content": "Hi?"}]
    with pytest.raises(UserError, match="t:1 is not a message tree"):
        list(UNFOLDS.get("oasst_threads")(Row("t:1", {"text": "x"})))


def test_chitchat_merges_what_one_sender_writes_and_drops_who_they_are(tmp_path: Path) -> None:
    def message(sender: str, text: str) -> dict[str, str]:
        return {"text": text, "sender": sender, "timestamp": "2018"}

    talk = {"c1": {"messages": [[message("A-1", "Hello"), message("A-1", "you?")], [message("B-2", "fine")]]},
            "c2": {"messages": [[message("A-1", "Alone")]]}}  # fmt: skip
    files = {"chitchat_dataset/dataset.json": json.dumps(talk).encode()}
    tiny_packages.wheel(tmp_path, "chitchat-dataset", "0.9.0", files)
    (row,) = chitchat.read(next(tmp_path.glob("*.whl"))).splits["train"]
    assert row.values["messages"] == [
        {"role": "user", "content": "Hello\nyou?"}, {"role": "assistant", "content": "fine"}
    ]  # fmt: skip
    assert "A-1" not in json.dumps(row.values)


# ---- generated ----


def test_chains_are_right_and_different(tmp_path: Path) -> None:
    assert solved([3, 7, 2], ["-", "+"]) == "3-7=-4;-4+2=-2#-2"
    found, log = made(tmp_path, options("chain_arithmetic", size=600))
    rows = [row for split in found.values() for row in split]
    assert len({row["prompt"] for row in rows}) == len(rows) == 600
    assert {row["terms"] for row in rows} == {2, 3, 4, 5, 6}
    assert all(eval(row["prompt"].rstrip("=")) == int(row["answer"]) for row in rows)
    assert set(found) == {"train", "validation", "test"}
    assert log.found["source"] == {"generated": "by options"}


def test_a_pool_that_is_too_small_is_refused(tmp_path: Path) -> None:
    pool = {"name": "chain_arithmetic", "fewest_terms": 2, "most_terms": 2}
    with pytest.raises(UserError, match="different items, not 5000"):
        made(tmp_path, options("chain_arithmetic", size=5000, generator=pool))
    with pytest.raises(ValueError, match="need each other"):
        options("chain_arithmetic", path="elsewhere.jsonl")


def test_generated_functions_pass_their_own_tests() -> None:
    generator = GENERATORS.get("functions")
    items = list(generator.items(generator.options(name="functions"), 200, 1))
    assert len({item["template"] for item in items}) == 45
    assert items == list(generator.items(generator.options(name="functions"), 200, 1))
    for item in items:
        program = f"{item['prompt']}\n{item['canonical_solution']}\n\n{item['test']}\n\ncheck({item['entry_point']})\n"
        exec(program, {})


# ---- real samples ----

REAL = [
    ("humaneval", "humaneval/HumanEval.jsonl", {"test": 164}),
    ("mbpp", "mbpp/mbpp.jsonl", {}),
    ("self_instruct", "self_instruct/seed_tasks.jsonl", {}),
    ("self_instruct", "self_instruct/user_oriented_instructions.jsonl", {}),
    ("oasst", "oasst_en_100/en_100_tree.jsonl", {}),
    ("ifeval", "ifeval/input_data.jsonl", {"test": 541}),
    ("ifeval_instructions", "ifeval/input_data.jsonl", {"test": 541}),
    ("gsm8k", "gsm8k", {"test": 1319}),
]


@pytest.mark.skipif(not SHARED.is_dir(), reason="the samples are not here")
@pytest.mark.parametrize(("group", "path", "rows"), REAL)
def test_real_samples_come_in(tmp_path: Path, group: str, path: str, rows: dict[str, int]) -> None:
    found, _ = made(tmp_path, options(group, path=str(SHARED / path), subset=""))
    assert {split: len(found[split]) for split in rows} == rows
    assert all(found.values())
    if group in ("humaneval", "mbpp"):
        for row in next(iter(found.values()))[:40]:
            exec(row["program"]["before"] + row["completion"] + row["program"]["after"], {})


@pytest.mark.skipif(not SHARED.is_dir(), reason="the samples are not here")
def test_real_trees_hold_ranked_replies(tmp_path: Path) -> None:
    path = str(SHARED / "oasst_en_100" / "en_100_tree.jsonl")
    config = options("oasst", path=path, unfold="oasst_replies", keep=["replies"], fractions=[0, 0, 1])
    found, _ = made(tmp_path, config)
    assert 190 <= len(found["test"]) <= 212, "with two or more replies of people that people ranked"
