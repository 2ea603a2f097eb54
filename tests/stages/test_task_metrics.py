"""Metrics of tasks: by hand on tiny models and on texts with known scores."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from stages import checkpoints, families, json_lines
from stages.contracts import Checkpoint, Corpus, Metrics, UserError
from stages.evaluate import answers, compare, likelihoods
from stages.evaluate.answers import AnswerOptions
from stages.evaluate.metrics import METRICS, Judged, Measurement
from stages.evaluate.metrics.exact_match import normalized
from stages.evaluate.metrics.pass_at_k import completion, pass_at_k
from stages.evaluate.metrics.replies import repeated
from stages.evaluate.metrics.rouge import lead_rule, scores
from stages.items.encoding import Tokens
from tests import tiny
from tests.recording import RecordingLog


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return Checkpoint(tiny.save_model(tmp_path_factory.mktemp("model")), "model")


def judged(model: Checkpoint, folder: Path, rows: list[dict[str, Any]], **facts: Any) -> Judged:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "test.jsonl").write_text("".join(json.dumps({"id": f"item {n}", **r}) + "\n" for n, r in enumerate(rows)))
    known = {"format": "prompted", "digest": "d" * 64, "loss_on": "completion", **facts}
    (folder / "meta.json").write_text(json.dumps({"facts": known, "metrics": {}}))
    out = folder / "out"
    out.mkdir()
    family = families.of(model.path)
    return Judged(
        checkpoints.load(model), family.tokenizer(model.path), family, Corpus(folder, "data"), 2, out=out, run_code=True
    )


def measured(name: str, on: Judged, tmp_path: Path, **options: Any) -> dict[str, Measurement]:
    metric = METRICS.get(name)
    asked = metric.options.model_validate({"name": name, **options})
    metric.check(asked, on)
    found = metric.measure(asked, on, RecordingLog(tmp_path / "resume"))
    return found if isinstance(found, dict) else {name: found}


def kept(on: Judged, name: str) -> list[dict[str, Any]]:
    assert on.out is not None
    return list(json_lines.read(on.out / f"{name}.jsonl"))


def test_a_batch_of_prompts_is_answered_as_each_alone(model: Checkpoint, tmp_path: Path) -> None:
    rows = [{"prompt": "the river " * n, "completion": "holds"} for n in (1, 5, 2)]
    on = judged(model, tmp_path, rows)
    options = AnswerOptions(name="replies", max_new_tokens=8)
    found = answers.answer(options, on, RecordingLog(tmp_path / "resume"))
    for row, given in zip(rows, found, strict=True):
        ids = on.tokenizer(row["prompt"])["input_ids"]
        for _ in range(8):
            logits_TV = on.model(input_ids=torch.tensor([ids])).logits[0]
            ids = [*ids, int(logits_TV[-1].argmax())]
        own = ids[-8:]
        ended = own.index(0) if 0 in own else 8
        assert given.tokens == ended
        assert given.stopped == (0 in own)
        assert given.text == on.tokenizer.decode(own[:ended])


def test_samples_follow_the_seed(model: Checkpoint, tmp_path: Path) -> None:
    on = judged(model, tmp_path, [{"prompt": "the river", "completion": "holds"}])
    log = RecordingLog(tmp_path / "resume")

    def texts(seed: int) -> list[str]:
        options = AnswerOptions(name="replies", max_new_tokens=8, temperature=1.0, top_k=50, seed=seed)
        return [given.text for given in answers.answer(options, on, log, samples=3)]

    assert texts(0) == texts(0)
    assert len(set(texts(0))) > 1


def test_the_likelihood_of_targets_is_a_loop_over_their_tokens(model: Checkpoint, tmp_path: Path) -> None:
    on = judged(model, tmp_path, [])
    encoded = [Tokens([3, 4, 5, 6], [False, False, True, True]), Tokens([7, 8], [True, True])]
    found = likelihoods.of_targets(on, encoded, RecordingLog(tmp_path / "resume"), "")
    for row, likelihood in zip(encoded, found, strict=True):
        logits_TV = on.model(input_ids=torch.tensor([row.ids])).logits[0].log_softmax(-1)
        nats = [-float(logits_TV[t - 1, row.ids[t]].detach()) for t in range(1, len(row.ids)) if row.learned[t]]
        assert likelihood.nats == pytest.approx(sum(nats), rel=1e-5)
        assert likelihood.tokens == len(nats)


def test_held_out_targets_have_a_likelihood_with_its_error(model: Checkpoint, tmp_path: Path) -> None:
    rows = [{"prompt": "the river", "completion": f" holds {word}"} for word in ("water", "stone", "red", "blue")]
    (found,) = measured("target_nll", judged(model, tmp_path, rows), tmp_path).values()
    assert 0 < found.value < 2 * math.log(tiny.VOCABULARY)
    assert found.stderr is not None
    assert found.protocol["items"] == 4
    assert found.protocol["loss_on"] == "completion"


# ---- exact match ----


@pytest.mark.parametrize(("text", "expected"), [("1,234", "1234"), (" $5. ", "5"), ("-2", "-2")])
def test_answers_are_compared_as_gsm8k_compares_them(text: str, expected: str) -> None:
    assert normalized(text) == expected


def answered(monkeypatch: pytest.MonkeyPatch, *texts: str) -> None:
    """As if the model wrote these texts."""

    def answer(options: Any, on: Judged, log: Any, samples: int = 1) -> list[answers.Answer]:
        asked = [question for question in answers.questions(options, on) for _ in range(samples)]
        return [answers.Answer(question, text, 3, True) for question, text in zip(asked, texts, strict=True)]

    monkeypatch.setattr(answers, "answer", answer)


def test_exact_match_is_told_for_each_number_of_terms(
    model: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [
        {"prompt": "1+1=", "completion": "1+1=2#2", "answer": "2", "terms": 2},
        {"prompt": "2+1=", "completion": "2+1=3#3", "answer": "3", "terms": 2},
        {"prompt": "1+1+1=", "completion": "1+1=2;2+1=3#3", "answer": "3", "terms": 3},
    ]
    on = judged(model, tmp_path, rows, format="qa", answer_mark="#")
    answered(monkeypatch, "1+1=2#2", "2+1=3#4", "no mark 3")
    found = measured("exact_match", on, tmp_path, by="terms")
    assert {name: it.value for name, it in found.items()} == {
        "exact_match": pytest.approx(1 / 3), "exact_match_terms_2": 0.5, "exact_match_terms_3": 0.0
    }  # fmt: skip
    assert found["exact_match"].stderr == pytest.approx(1 / 3)
    assert [row["score"] for row in kept(on, "exact_match")] == [1.0, 0.0, 0.0]
    with pytest.raises(UserError, match=r"no 'steps'; data\.keep"):
        measured("exact_match", on, tmp_path, by="steps")


def test_models_are_compared_item_by_item(tmp_path: Path) -> None:
    def result(name: str, scores: list[float]) -> Metrics:
        folder = tmp_path / name
        folder.mkdir()
        mean = sum(scores) / len(scores)
        protocol = {"kind": "exact match", "higher_is_better": True, "items": len(scores)}
        (folder / "metrics.json").write_text(json.dumps({"exact_match": {"value": mean, "protocol": protocol}}))
        # an id may hold a line separator, which is no end of a line in such a file
        rows = [{"id": f"{n}\u2028", "score": score} for n, score in enumerate(scores)]
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / "exact_match.jsonl").write_text(lines, encoding="utf-8")
        return Metrics(folder, name)

    a, b = result("a", [0.0, 1.0] * 20), result("b", [1.0, 1.0] * 20)
    (found,) = compare.compare([a], [b], 200, 0)
    assert (found.a, found.b) == (0.5, 1.0)
    assert found.difference.low > 0.3


# ---- ROUGE ----


def test_rouge_by_hand() -> None:
    found = scores(["the river holds water"], ["rivers hold stone"])
    # stemmed: river, hold in common; 3 and 4 words
    assert found["rouge_1"] == [pytest.approx(100 * 4 / 7)]
    assert found["rouge_2"] == [pytest.approx(100 * 2 / 5)]
    apart = scores(["A. B c. D"], ["D. A. B c"])
    assert apart["rouge_lsum"] == [pytest.approx(100)]
    assert apart["rouge_l"] == [pytest.approx(75)]


@pytest.mark.parametrize(
    ("article", "description"),
    [
        ("Uttar Pradesh is a state in northern India, and more.", "state in northern India"),
        ("He (born 1900) was the king of the hill. He is a man.", "king of the hill"),
        ("Nothing here. Really.", "Nothing here."),
    ],
)
def test_the_rule_of_leads(article: str, description: str) -> None:
    assert lead_rule(article) == description


def test_rouge_stands_beside_the_rule(model: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    article = "Ulm is a city in the south."
    row = {"prompt": f"A:\n{article}\nS:\n", "completion": "a city\n", "article": article, "cut": [3, 3 + len(article)]}
    on = judged(model, tmp_path, [row, row])
    answered(monkeypatch, "a city", "the river")
    found = measured("rouge", on, tmp_path, rule=True)
    assert found["rouge_1"].value == pytest.approx(50)
    assert found["rouge_1"].protocol["rule"] == pytest.approx(100 / 3)
    assert found["rouge_lsum"].protocol["sentences"]


# ---- conversations ----

ZEPHYR = {"format": "messages", "template": "zephyr"}


def test_preferences_are_those_of_the_mean_likelihood(model: Checkpoint, tmp_path: Path) -> None:
    ask = [{"role": "user", "content": "the river"}]
    rows = [{"messages": ask, "replies": ["holds water", "stone of the red city", "blue"]},
            {"messages": ask, "replies": ["blue", "holds water"]}]  # fmt: skip
    on = judged(model, tmp_path, rows, **ZEPHYR)
    found = measured("preference_accuracy", on, tmp_path)["preference_accuracy"]
    asking = answers.items(on)

    def mean(reply: str) -> float:
        turns = [*ask, {"role": "assistant", "content": reply}]
        encoded = asking.encode({"messages": turns, "id": ""}, 300, "", last_target=True)
        return likelihoods.of_targets(on, [encoded], RecordingLog(tmp_path / "resume"), "")[0].mean

    by_hand = [
        sum(mean("holds water") < mean(other) for other in ("stone of the red city", "blue")) / 2,
        float(mean("blue") < mean("holds water")),
    ]
    assert found.value == pytest.approx(sum(by_hand) / 2)
    assert found.protocol["replies"] == 5
    with pytest.raises(UserError, match="ranked `replies`"):
        measured("preference_accuracy", judged(model, tmp_path / "no", [{"messages": ask}], **ZEPHYR), tmp_path)


def test_replies_are_written_in_alpaca_evals_form(model: Checkpoint, tmp_path: Path) -> None:
    # two items that ask the same
    on = judged(model, tmp_path, [{"messages": [{"role": "user", "content": "the river"}]}] * 2, **ZEPHYR)
    found = measured("replies", on, tmp_path, max_new_tokens=6, generator="tiny")
    assert on.out is not None
    (row,) = json.loads((on.out / "outputs.json").read_text())
    assert set(row) == {"instruction", "output", "generator", "dataset"}
    assert (row["instruction"], row["generator"]) == ("the river", "tiny")
    assert found["reply_tokens"].higher_is_better is None
    assert 0 <= found["reply_stop_rate"].value <= 1


def test_repeated_four_grams_by_hand() -> None:
    assert repeated("a b c d") == 0
    assert repeated("a b c d a b c d") == pytest.approx(1 / 5)
    assert repeated("x " * 10) == pytest.approx(6 / 7)
    assert repeated("too short") == 0


def test_ifeval_counts_instructions_and_prompts(
    model: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_comma, title = "punctuation:no_comma", "detectable_format:title"
    ask = [{"role": "user", "content": "the river"}]
    kinds = [[no_comma, title], [no_comma], ["language:response_language"]]
    rows = [{"messages": ask, "instruction_id_list": kind, "kwargs": [{}] * len(kind)} for kind in kinds]
    on = judged(model, tmp_path, rows, **ZEPHYR)
    answered(monkeypatch, "no title", "Sure, yes\nno comma", "hm")
    found = measured("ifeval", on, tmp_path, max_new_tokens=8)
    assert {name: it.value for name, it in found.items()} == {
        "ifeval_prompt_strict": 0.0, "ifeval_instruction_strict": pytest.approx(1 / 3),
        "ifeval_prompt_loose": 0.5, "ifeval_instruction_loose": pytest.approx(2 / 3),
    }  # fmt: skip
    assert found["ifeval_prompt_strict"].protocol["left_out"] == 1
    assert found["ifeval_prompt_strict"].protocol["of_other_prompts"] == 0.5


# ---- programs ----


def test_pass_at_k_is_the_unbiased_estimate() -> None:
    assert pass_at_k(5, 2, 1) == pytest.approx(2 / 5)
    assert pass_at_k(5, 2, 2) == pytest.approx(1 - (3 / 5) * (2 / 4))
    assert pass_at_k(5, 4, 2) == 1.0


@pytest.mark.parametrize(
    ("text", "program"),
    [
        ("    return 1\n\ndef other():\n    pass", "    return 1\n"),
        ("Sure:\n```python\ndef f():\n    return 1\n```\nDone", "def f():\n    return 1\n"),
        ("```\nx = 1", "x = 1"),
    ],
)
def test_a_program_is_the_first_fenced_block_or_ends_where_another_begins(text: str, program: str) -> None:
    assert completion(text, ["\nclass", "\ndef"]) == program


def test_programs_are_run_against_their_tests(
    model: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frame = {"before": "def f(x):\n", "after": "\n\nassert f(2) == 3\n"}
    on = judged(model, tmp_path, [{"prompt": "the river", "completion": "x", "program": frame}] * 2)
    answered(monkeypatch, "    return x + 1\n", "    return x\n", "    return (\n", "    while True: pass\n")
    found = measured("pass_at_k", on, tmp_path, samples=2, k=[1, 2], temperature=0.5, seconds=1)
    assert {name: it.value for name, it in found.items()} == {
        "pass_at_1": 0.25, "pass_at_2": 0.5, "code_parses": 0.75
    }  # fmt: skip
    assert [row["score"] for row in kept(on, "pass_at_k")] == [1.0, 0.0, 0.0, 0.0]


def test_programs_are_not_run_unless_that_is_asked_for(model: Checkpoint, tmp_path: Path) -> None:
    on = judged(model, tmp_path, [])
    off = Judged(on.model, on.tokenizer, on.family, on.data, 2)
    with pytest.raises(UserError, match=r"runs programs that a model wrote.*evaluate\.run_code=true") as refused:
        METRICS.get("pass_at_k").check(METRICS.get("pass_at_k").options(name="pass_at_k"), off)
    assert refused.value.option == "evaluate.run_code"
    with pytest.raises(ValueError, match="greedy"):
        METRICS.get("pass_at_k").options(name="pass_at_k", samples=2)
