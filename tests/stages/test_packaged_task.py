"""The task of questions that comes with the pipeline: lm-eval runs and scores it as stock GSM8K."""

import re
from pathlib import Path

import pytest
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from stages.data import run as data
from stages.evaluate import tasks
from tests.tiny_sources import made, problems, questions_of, read_rows, write_rows

pytestmark = pytest.mark.usefixtures("own_cache")


def qa_task(tmp_path: Path, **changes):
    from lm_eval.tasks import TaskManager

    write_rows(tmp_path / "source.jsonl", problems(200))
    config = questions_of(str(tmp_path / "source.jsonl"))
    made(data, config, tmp_path / "qa")
    manager = TaskManager(include_path=str(tasks.FOLDER), include_defaults=False)
    assert manager.all_tasks == ["squarehead_qa"]
    settings = yaml.safe_load((tasks.FOLDER / "squarehead_qa.yaml").read_text())
    files = {name: str(tmp_path / "qa" / f"{name}.jsonl") for name in ("train", "test")}
    return manager.load([{**settings, "dataset_kwargs": {"data_files": files}, **changes}])["tasks"]["squarehead_qa"]


def test_the_packaged_task_runs_on_a_model_in_memory(llama, tmp_path):
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    task = qa_task(tmp_path, generation_kwargs={"until": ["Question:"], "do_sample": False, "max_gen_toks": 4})
    language_model = HFLM(
        pretrained=AutoModelForCausalLM.from_pretrained(llama), tokenizer=AutoTokenizer.from_pretrained(llama)
    )
    found = lm_eval.evaluate(language_model, {"squarehead_qa": task}, limit=4, bootstrap_iters=0, log_samples=False)
    scores = found["results"]["squarehead_qa"]
    assert scores["exact_match,strict-match"] == scores["exact_match,flexible-extract"] == 0


@pytest.mark.parametrize(
    ("answer", "strict", "flexible"),
    [
        ("{completion}", 1, 1),
        (" I think it is ${answer}.", 0, 1),
        (" #### {answer}, or not\n#### 1", 1, 0),
        (" I do not know.", 0, 0),
    ],
)
def test_the_packaged_task_scores_as_stock_gsm8k_does(tmp_path, answer, strict, flexible):
    task = qa_task(tmp_path)
    docs = [doc for doc in task.test_docs() if doc["answer"] != "1"]
    assert docs
    task.build_all_requests(limit=None, rank=0, world_size=1)
    for instance in task.instances:
        assert instance.args[0] == instance.doc["prompt"]
        instance.resps.append(answer.format(**instance.doc))
    task.apply_filters()
    for name, expected in (("strict-match", strict), ("flexible-extract", flexible)):
        scores = {
            task.process_results(instance.doc, [instance.filtered_resps[name]])["exact_match"]
            for instance in task.instances
        }
        assert scores == {expected}


def test_the_packaged_task_takes_shots_from_train(tmp_path):
    task = qa_task(tmp_path, num_fewshot=2)
    task.build_all_requests(limit=1, rank=0, world_size=1)
    context = task.instances[0].args[0]
    assert context.count("Question:") == 3
    assert context.count("####") == 2
    test_questions = {row["question"] for row in read_rows(tmp_path / "qa" / "test.jsonl")}
    shown = re.findall(r"Question: (.*)\n", context)
    assert not test_questions & set(shown[:2])
