"""Every option is checked, and every error names the option to change."""

from __future__ import annotations

import pytest
import yaml

from pipeline.recipes import build
from pipeline.schema import parse
from stages.benchmark.backends import BACKENDS
from stages.contracts import UserError
from stages.data.formats import FORMATS, names_of
from stages.model.families import FAMILIES
from tests.composed import CONF, config

DATA = [
    *("asterisk_prompts", "chain_arithmetic", "chitchat", "code_instructions", "common_voice_hi", "descriptions"),
    *("functions", "gsm8k", "gsm_symbolic", "humaneval", "ifeval", "ifeval_instructions", "instructions"),
    *("libreoffice_en_de", "mbpp", "messages", "oasst", "qa", "self_instruct", "speech", "summaries", "text"),
    *("translation", "wikipedia_leads", "wmt14_en_de"),
]
EVALUATIONS = [
    *(
        "arithmetic",
        "bleu",
        "chat",
        "code",
        "gsm",
        "leaderboard",
        "mbpp",
        "perplexity",
        "preferences",
        "summaries",
        "wer",
    ),
]
EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))


def test_every_experiment_is_known_to_these_tests() -> None:
    assert [
        *("gradual", "gsm8k", "gsm_symbolic", "quickstart", "t5_libreoffice", "t5_wmt14", "two_of_four"),
        *("whisper_asterisk", "whisper_common_voice_hi", "wikipedia_leads"),
    ] == EXPERIMENTS


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_composes_into_a_graph(experiment: str) -> None:
    graph = build(config(f"experiment={experiment}"))
    assert {"model", "data", "evaluate", "evaluate_q", "benchmark"} <= set(graph)


@pytest.mark.parametrize(
    ("group", "choices"),
    [
        ("prune", ["alps", "magnitude", "random", "ria", "sparsegpt", "wanda"]),
        ("recipe", ["dense", "foundation", "one_shot", "task_pruning"]),
        ("corpus", ["general_and_python", "slimpajama_and_stack", "text", "text_and_sums"]),
        ("pretrain", ["base"]),
        ("foundation", ["dense", "half", "half_70_then_85", "half_then_70", "llama2", "magnitude_half_then_70"]),
        ("schedule", ["cubic", "ladder", "one_shot"]),
        ("distill", ["ce", "kd", "squarehead", "squarehead_whisper"]),
        ("quantize", ["none", "w8a8"]),
        ("data", DATA),
        ("evaluate", EVALUATIONS),
        ("benchmark", ["engine", "none", "peers", "torch"]),
        ("tracking", ["local", "none"]),
        (
            "model",
            [
                *("llama2_7b", "llama_from_scratch", "seq2seq", "smollm2_135m", "t5", "t5_from_scratch"),
                *("whisper", "whisper_tiny_en"),
            ],
        ),
    ],
)
def test_every_choice_of_every_group_composes(group: str, choices: list[str]) -> None:
    assert sorted(path.stem for path in (CONF / group).glob("*.yaml")) == choices
    for choice in choices:
        build(config(f"{group}={choice}", *fitting(group, choice)))


JUDGES = {
    "text": "perplexity", "qa": "gsm", "prompted": "summaries", "messages": "chat", "translation": "bleu",
    "speech": "wer",
}  # fmt: skip
"""By format of the data."""


def reader(format: str) -> str:
    """The first family that reads data of a format."""
    return next(name for name in FAMILIES.names() if FORMATS.get(format).rows in FAMILIES.get(name).reads)


def fitting(group: str, choice: str) -> list[str]:
    """What else to choose so that the model's family reads the data's format, the evaluation fits them, and what a
    choice leaves open."""
    chosen = yaml.safe_load((CONF / group / f"{choice}.yaml").read_text())
    if group == "data":
        family = reader(chosen["format"])
        speech = ["evaluate.generation.normalizer=unicode"] if family == "whisper" else []
        path = [] if "generator" in chosen else ["data.path=own.jsonl"]
        return [f"model.family={family}", *path, f"evaluate={JUDGES[chosen['format']]}", *speech]
    if group == "evaluate":
        data = next((data for data, judge in JUDGES.items() if judge == choice and data != "prompted"), "qa")
        family = reader(data)
        return [f"data={data}", "data.path=own.jsonl", f"model.family={family}"]
    if group == "model":
        data = names_of(FAMILIES.get(chosen["family"]).reads)[-1]
        path = ["model.path=own"] if chosen["path"] == "???" else []
        return [f"data={data}", "data.path=own.jsonl", f"evaluate={JUDGES[data]}", *path]
    if group == "corpus":
        return ["pretrain=base", *(["corpus.sources.text.path=own.jsonl"] if choice == "text" else [])]
    if group == "pretrain":
        return ["corpus=general_and_python"]
    return ["recipe=foundation", "sparsity=0.85"] if group == "foundation" else []


def test_the_table_of_peers_has_every_backend() -> None:
    assert sorted(config("benchmark=peers").benchmark.backends) == sorted(BACKENDS.names())


@pytest.mark.parametrize(
    ("override", "option", "says"),
    [
        ("sparsity=1.0", "sparsity", "less than 1"),
        ("sparsity=-0.1", "sparsity", "greater than or equal to 0"),
        ("sparsity=half", "sparsity", "half"),
        ("prune.pattern='5:4'", "prune.pattern", "5:4"),
        ("prune.pattern=lots", "prune.pattern", "lots"),
        ("prune.pattern='16:64'", "sparsity", "0.75"),
        ("finetune.lr=0", "finetune.lr", "greater than 0"),
        ("finetune.lr=nan", "finetune.lr", "nan"),
        ("finetune.epochs=1", "finetune", "one of steps, epochs and tokens"),
        ("finetune.micro_batch_size=3", "finetune", "micro_batch_size=3"),
        ("distill.ce=0", "distill", "loss weights"),
        ("data.fractions=[0.5,0.1,0.1]", "data.fractions", "sum to 1"),
        ("+schedule.levels=[0.2]", "schedule", "kind=ladder"),
        ("+finetune.learning_rate=1", "finetune.learning_rate", "unknown option"),
        ("prune.method=oracle", "prune.method", "oracle"),
        ("prune.skip=['(']", "prune.skip", "is not a regular expression"),
        ("quantize.skip=['[']", "quantize.skip", "is not a regular expression"),
        ("runs=''", "runs", "at least 1 character"),
        ("tracking.experiment=''", "tracking.experiment", "at least 1 character"),
        ("benchmark.backends=[]", "benchmark.backends", "no backends to measure"),
        ("reference=t6", "reference", "no published table 't6'"),
        ("dense.training.teacher_cache_gb=1", "dense", "finetune.teacher_cache_gb"),
        ("evaluate.tasks=[{name: gsm8k}, {name: gsm8k, shots: 8}]", "evaluate", "gsm8k is listed twice"),
    ],
)
def test_a_wrong_value_is_refused_by_the_name_of_its_option(override: str, option: str, says: str) -> None:
    overrides = [override] + (["distill=ce"] if override.startswith("distill") else [])
    with pytest.raises(UserError) as caught:
        config(*overrides)
    assert caught.value.option == option
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_section_is_named() -> None:
    with pytest.raises(UserError, match="model"):
        parse({})


@pytest.mark.parametrize(
    ("overrides", "option"),
    [
        (["schedule=cubic", "schedule.end_step=999"], "schedule.end_step"),
        (["schedule=cubic", "schedule.initial=0.6"], "schedule.initial"),
        (["schedule=cubic", "finetune.steps=0", "finetune.epochs=1"], "finetune.epochs"),
    ],
)
def test_parts_that_contradict_each_other_are_refused(overrides: list[str], option: str) -> None:
    with pytest.raises(UserError) as caught:
        build(config(*overrides))
    assert caught.value.option == option
