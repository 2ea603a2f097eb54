"""The five tasks, each from its data to its evaluation, on a tiny model."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest

from pipeline.graph import BASELINE
from pipeline.recipes import build
from pipeline.record.status import Status
from stages.contracts import UserError
from tests import tiny
from tests.composed import CONF, config
from tests.running import Place, make_sources

TASKS = sorted(path.relative_to(CONF / "task").with_suffix("").as_posix() for path in (CONF / "task").rglob("*.yaml"))
SENTENCES = tiny.sentences(40, 0)
SHORT = [" ".join(text.split()[:5]) for text in SENTENCES]
TURNS = [
    [{"role": "user", "content": text}, {"role": "assistant", "content": answer}] for text, answer in pairwise(SHORT)
]
ROWS: dict[str, list[dict[str, Any]]] = {
    "chat": [{"messages": turns, "id": str(n)} for n, turns in enumerate(TURNS)],
    "instruct": [{"instruction": f"Say {n}.", "input": "", "output": text} for n, text in enumerate(SHORT)],
    "summaries": [
        {"article": text * 3, "highlights": short, "id": text} for text, short in zip(SENTENCES, SHORT, strict=True)
    ],
}
OWN = {
    "chat": [
        "data=messages",
        "data.columns.id=id",
        "evaluate.metrics=[{name: target_nll}, {name: replies, limit: 3, max_new_tokens: 8}]",
    ],
    "instruct": ["evaluate.metrics=[{name: target_nll}, {name: replies, limit: 3, max_new_tokens: 8}]"],
    "summaries": ["data=summaries", "evaluate.metrics=[{name: rouge, limit: 3, max_new_tokens: 8}, target_nll]"],
    "code": [
        "data.size=100",
        "evaluate.run_code=true",
        "evaluate.metrics=[{name: pass_at_k, limit: 2, max_new_tokens: 8}]",
    ],
    "arithmetic": ["data.size=200", "evaluate.metrics=[{name: exact_match, limit: 4, max_new_tokens: 8, by: terms}]"],
}
FIRST = {
    "chat": "target_nll", "instruct": "target_nll", "summaries": "rouge_1", "code": "pass_at_1",
    "arithmetic": "exact_match",
}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("tasks")
    for task, rows in ROWS.items():
        (folder / f"{task}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Place(make_sources(folder / "sources"), folder)


def overrides(place: Place, task: str) -> list[str]:
    small = [line for line in place.small if not line.startswith("evaluate.perplexity")]
    where = [f"data.path={place.folder / task}.jsonl"] if task in ROWS else []
    lengths = [f"{option}=300" for option in ("dense.training.sequence_length", "finetune.sequence_length")]
    fractions = ["data.fractions=[0.6, 0.2, 0.2]"]
    return [
        f"task={task}", *small, *lengths, *fractions, "calibrate.length=300", "quantize=none", "benchmark=none",
        *OWN[task], *where,
    ]  # fmt: skip


@pytest.mark.parametrize("task", sorted(OWN))
def test_a_task_goes_from_its_data_to_its_evaluation(place: Place, task: str) -> None:
    outcomes = place.run_config(*overrides(place, task))
    assert {name: it.status for name, it in outcomes.items() if it.status not in (Status.DONE, Status.HIT)} == {}
    for folder in (place.runs / "store" / "finetune").iterdir():
        assert json.loads((folder / "meta.json").read_text())["facts"]["loss_on"] == "completion"
    for node in (BASELINE, "evaluate"):
        assert FIRST[task] in outcomes[node].metrics
    assert all(metric.protocol["data_digest"] for metric in outcomes["evaluate"].metrics.values() if metric.protocol)


@pytest.mark.parametrize("task", TASKS)
def test_every_task_composes_and_plans(task: str) -> None:
    asked = config(f"task={task}", *(["data.path=x"] if task == "instruct" else []))
    graph = build(asked)
    assert "evaluate" in graph
    assert asked.data.item_facts()["loss_on"] in ("completion", "all")
    assert asked.finetune.sequence_length >= asked.calibrate.length


def test_items_of_other_data_are_asked_by_every_evaluation(place: Place) -> None:
    tests = place.folder / "asked.jsonl"
    tests.write_text(json.dumps({"key": 1, "prompt": "the river"}) + "\n")
    other = ["data@test_data=ifeval", f"test_data.path={tests}", "test_data.keep=[]"]
    metrics = "evaluate.metrics=[{name: replies, max_new_tokens: 4}]"
    outcomes = place.run_config(*overrides(place, "chat"), *other, metrics)
    assert outcomes["evaluate"].metrics["reply_tokens"].protocol["items"] == 1


def test_an_error_of_other_data_names_their_option(place: Place) -> None:
    with pytest.raises(UserError) as caught:
        place.run_config(*overrides(place, "chat"), "data@test_data=ifeval", "test_data.path=./nowhere.jsonl")
    assert caught.value.option == "test_data.path"


def test_programs_are_refused_before_anything_is_trained(place: Place) -> None:
    asked = [*overrides(place, "code"), "seed=3", "evaluate.metrics=[pass_at_k]", "evaluate.run_code=false"]
    outcomes = place.run_config(*asked)
    assert "runs programs that a model wrote" in outcomes[BASELINE].error
    assert outcomes["dense"].status is Status.NOT_RUN


def test_stock_tasks_go_by_their_names() -> None:
    tasks = config("evaluate.tasks=[arc_easy,{name: hellaswag, shots: 10}]").evaluate.tasks
    assert [(task.name, task.shots, task.include) for task in tasks] == [("arc_easy", None, ""), ("hellaswag", 10, "")]


def test_a_model_that_learned_its_items_answers_them(place: Place) -> None:
    """Packed rows, their masks and the prompts of the evaluation belong together: else no item comes out."""
    small = [line for line in place.small if not line.startswith("evaluate.perplexity")]
    training = {
        "steps": 160, "lr": 0.01, "batch_size": 8, "micro_batch_size": 8, "sequence_length": 64, "warmup_steps": 10,
        "eval_every": 0, "checkpoint_every": 0,
    }  # fmt: skip
    pool = ["data.size=20", "data.generator.most_terms=2", "data.generator.largest=4", "data.fractions=[0.8,0.1,0.1]"]
    outcomes = place.run_config(
        "task=arithmetic", *small, "recipe=dense", f"until={BASELINE}", "quantize=none", "benchmark=none", *pool,
        *(f"dense.training.{name}={value}" for name, value in training.items()),
        "evaluate.metrics=[{name: exact_match, split: train, max_new_tokens: 12}]",
    )  # fmt: skip
    assert outcomes[BASELINE].metrics["exact_match"].value > 0.85
