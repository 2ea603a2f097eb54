"""recipe=foundation: its graph, what jobs of several tasks share, and a whole tiny run from random weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.graph import Graph
from pipeline.plan import Stores, make_plan
from pipeline.recipes import build
from pipeline.record.status import Status
from stages import masks
from stages.contracts import Checkpoint, PackedCorpus, UserError
from tests import tiny
from tests.composed import config, config_of
from tests.running import Place, fork

LADDER = ("schedule=ladder", "schedule.levels=[0.3,0.5,0.7]")


def graph_of(*overrides: str) -> Graph:
    return build(config_of("recipe=foundation", *overrides))


def inputs_of(graph: Graph, *names: str) -> list[str]:
    return [graph[name].inputs["model"] for name in names]


def test_the_foundation_comes_before_the_task() -> None:
    graph = graph_of("foundation=half_then_70", "sparsity=0.7")
    path = ["prune_f50", "pretrain_f50", "prune_f70", "pretrain_f70", "finetune_70", "evaluate"]
    assert inputs_of(graph, *path) == ["model", *path[:-1]]
    assert graph["pretrain_f50"].inputs == {"model": "prune_f50", "data": "corpus"}, "no teacher with ce alone"
    assert graph["calibrate_corpus"].inputs["data"] == "corpus"
    assert graph["finetune_70"].inputs["teacher"] == "dense"
    assert graph["dense"].inputs == {"model": "model", "data": "data"}
    assert "dense_eval" not in graph["pretrain_f50"].after, "the foundation waits for no task"


def test_the_schedule_goes_on_above_the_foundation() -> None:
    graph = graph_of("sparsity=0.8", *LADDER)
    path = ["pretrain_f50", "finetune_50", "prune_70", "finetune_70", "prune_80", "finetune_80"]
    assert inputs_of(graph, *path[1:]) == path[:-1]
    assert not {"prune_30", "prune_50"} & set(graph)


def test_the_base_of_a_model_from_scratch_is_the_start_of_both() -> None:
    graph = graph_of("model=llama_from_scratch", "pretrain=base", "foundation.distill.squarehead=1")
    assert graph["model"].inputs == {}, "its tokenizer is of the corpus's sources"
    assert graph["base"].inputs == {"model": "model", "data": "corpus"}
    assert inputs_of(graph, "prune_f50", "dense") == ["base", "base"]
    assert graph["pretrain_f50"].inputs["teacher"] == "base"
    other = build(config_of("corpus=general_and_python", "model=llama_from_scratch", "pretrain=base"))
    assert other["base"] == graph["base"], "recipes share it"


def test_the_arms() -> None:
    random = graph_of("foundation.start=random")
    assert inputs_of(random, "random_f50", "pretrain_f50") == ["prune_f50", "random_f50"]
    magnitude = build(config("recipe=foundation", "foundation=magnitude_half_then_70", "sparsity=0.7"))
    assert magnitude["prune_f50"].config.prune.method == "magnitude"
    assert "calibrate_corpus" not in magnitude
    control = graph_of("foundation=dense", "sparsity=0")
    assert inputs_of(control, "pretrain_f0", "finetune_0") == ["model", "pretrain_f0"]
    assert not [name for name in control if name.startswith("prune")]


@pytest.mark.parametrize(
    ("overrides", "option"),
    [
        (("sparsity=0.3",), "sparsity"),
        (("schedule=cubic", "sparsity=0.7"), "schedule"),
        (("finetune.release=true", "sparsity=0.7"), "finetune.release"),
        (("foundation=dense", "foundation.start=random", "sparsity=0"), "foundation"),
        (("foundation.training.steps=5",), "foundation"),
        (("finetune.tokens=100",), "finetune"),
        (("calibrate.draw=documents",), "calibrate.draw"),
    ],
)
def test_what_contradicts_itself_is_refused(overrides: tuple[str, ...], option: str) -> None:
    with pytest.raises(UserError) as refused:
        graph_of(*overrides)
    assert refused.value.option == option


def test_a_corpus_that_nothing_reads_is_refused() -> None:
    with pytest.raises(UserError, match="nothing here trains on a corpus"):
        config_of("corpus=general_and_python")
    with pytest.raises(UserError, match="need each other, got recipe=task_pruning"):
        config_of("corpus=general_and_python", "foundation=half")
    with pytest.raises(UserError, match="choose one"):
        config_of("pretrain=base")


@pytest.fixture
def nano(place: Place) -> list[str]:
    """A whole recipe of a tiny Llama from scratch."""
    rows = [{"text": text} for text in tiny.sentences(200, 7)]
    (place.folder / "general.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    trainings = ("pretrain", "foundation.training")
    small = {**tiny.TRAINING, "steps": 0, "eval_windows": 2, "warmup_steps": 0}
    return [
        *(option for option in place.options if not option.startswith("model.path")),
        "recipe=foundation", "foundation=half_then_70", "model=llama_from_scratch", "pretrain=base", "corpus=text",
        f"corpus.sources.text.path={place.folder / 'general.jsonl'}", "corpus.validation_fraction=0.1",
        "corpus.shard_tokens=500", "model.scratch.vocabulary=300",
        *(f"model.scratch.settings.{key}={value}" for key, value in sizes.items()),
        *(f"{where}.{key}={value}" for where in trainings for key, value in small.items()),
        "pretrain.tokens=1000", "foundation.steps=[{sparsity: 0.5, tokens: 500}, {sparsity: 0.7, tokens: 700}]",
        "sparsity=0.7", "quantize=none", "benchmark=none",
    ]  # fmt: skip


def test_a_whole_recipe_whose_foundation_other_tasks_share(place: Place, nano: list[str]) -> None:
    done = place.run_config(*nano)
    assert {name: outcome.error for name, outcome in done.items() if outcome.error} == {}
    resolved = config(*nano)
    stores = Stores.of(resolved)
    plan = make_plan(resolved, build(resolved), stores)
    assert {item.status for item in plan.values()} == {Status.HIT}

    def made(name: str) -> Path:
        entry = plan[name].entry
        assert entry
        return entry.path

    assert json.loads((made("model") / "meta.json").read_text())["facts"]["label"] == "Llama trained from scratch"
    corpus = PackedCorpus(made("corpus"), "")
    assert len(corpus.index()["train"]) > 2
    base = done["base"].metrics
    assert base["tokens"].value == 1024, "of steps of 4 rows of 32 tokens, the first that reach 1000"
    assert "validation_loss_text" in base
    half, foundation, tuned = (
        masks.of(Checkpoint(made(name), "")) for name in ("pretrain_f50", "pretrain_f70", "finetune_70")
    )
    assert masks.sparsity(half) == pytest.approx(0.5, abs=0.01)
    assert masks.sparsity(foundation) == pytest.approx(0.7, abs=0.01)
    assert all(not (foundation[name] & ~half[name]).any() for name in half), "zeros stay zeros"
    assert masks.digest(tuned) == masks.digest(foundation)

    before, after = (done[name].metrics["perplexity_text"].value for name in ("base_eval", "foundation_eval"))
    assert before > 1
    assert after > 1
    assert done["foundation_eval"].metrics["perplexity_text"].recovery == pytest.approx(100 * before / after)

    another = tiny.save_texts(place.folder / "another", train=40)
    task = [*nano, f"data.path={another}"]
    other = make_plan(config(*task), build(config(*task)), stores)
    shared = ["model", "corpus", "base", "prune_f50", "pretrain_f50", "prune_f70", "pretrain_f70"]
    assert [other[name].status for name in shared] == [Status.HIT] * len(shared)
    assert other["finetune_70"].status == Status.TO_RUN

    released = place.run_config(*nano, "finetune.release=true")
    assert not released["finetune_70"].error
    assert released["finetune_70"].metrics["sparsity"].value == 0
    assert released["pretrain_f70"].status == Status.HIT


def test_two_processes_that_pack_one_corpus_make_it_once(place: Place, nano: list[str]) -> None:
    line = [*nano, "until=corpus", "tracking=none"]
    both = [it.end() for it in [fork(line, place.folder) for _ in range(2)]]
    assert [code for code, _ in both] == [0, 0], both
    assert len(list((place.runs / "store" / "corpus").iterdir())) == 1
    assert sum("▶ corpus" in said for _, said in both) == 1
