"""Runs lm-eval tasks (github.com/EleutherAI/lm-evaluation-harness) on a model in memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml

from stages.contracts import Bar, Corpus, Log, UserError
from stages.evaluate import tasks
from stages.evaluate.early import check_packaged, check_stock
from stages.evaluate.spec import Task

SEED = 1234
"""Seed of the choice of few-shot examples, lm-eval's own default."""


def run(task: Task, model: Any, tokenizer: Any, data: Corpus, log: Log) -> dict[str, dict[str, Any]]:
    """Returns `{name: {"value", "stderr" | None, "protocol"}}` for each metric and filter of the task; for a group
    those that it aggregates, or else those of each task in it.

    Raises UserError for an unknown task, or if its data are not available.
    """
    from lm_eval import __version__ as version
    from lm_eval import evaluator

    loaded = load(task, data)
    for lm_task in loaded["tasks"].values():
        if task.shots is not None:
            # set here, since lm-eval ignores a number of shots given to a task that has `num_fewshot: 0`
            lm_task.set_config(key="num_fewshot", value=task.shots)
        lm_task.set_fewshot_seed(SEED)
    shots = {lm_task.config.task: lm_task.config.num_fewshot or 0 for lm_task in loaded["tasks"].values()}
    torch.manual_seed(SEED)
    lm = _model(model, tokenizer, task, log)
    _check_context(lm.max_length, loaded["tasks"].values())
    results = evaluator.evaluate(lm, task_dict=loaded, limit=task.limit or None, log_samples=False)
    found: dict[str, dict[str, Any]] = {}
    for name, values in _own_or_all(task.name, results).items():
        samples = results["n-samples"].get(name, {})
        for key, value in values.items():
            metric, _, lm_filter = key.partition(",")
            if metric.endswith("_stderr") or not isinstance(value, int | float) or not lm_filter:
                continue
            stderr = values.get(f"{metric}_stderr,{lm_filter}")
            parts = [name, metric] if lm_filter == "none" else [name, metric, lm_filter]
            found["_".join(parts).replace("-", "_")] = {
                "value": float(value),
                "stderr": float(stderr) if isinstance(stderr, int | float) else None,
                "protocol": {
                    "kind": "lm-eval",
                    "lm_eval": version,
                    "task": name,
                    "version": results["versions"].get(name),
                    "metric": metric,
                    "filter": lm_filter,
                    "higher_is_better": results["higher_is_better"].get(name, {}).get(metric),
                    # a group whose tasks differ has no single number
                    "shots": shots.get(name, task.shots if len(set(shots.values())) > 1 else max(shots.values())),
                    "documents": samples.get("effective"),
                    "of_documents": samples.get("original"),
                },
            }
    return found


def _own_or_all(name: str, results: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns the group's own results, if it has any: one figure of MMLU says more than a table of its 57 subjects."""
    groups = results.get("groups", {})
    return {name: groups[name]} if name in groups else results["results"]


def _check_context(context: int, lm_tasks: Iterable[Any]) -> None:
    """Checks the prompt's room: lm-eval gives it the part of the model's context that answers do not need."""
    for lm_task in lm_tasks:
        answer = (lm_task.config.generation_kwargs or {}).get("max_gen_toks", 0)
        if answer >= context:
            raise UserError(
                f"answers of {lm_task.config.task} may have {answer} tokens; the model's context has {context}, with "
                "the prompt",
                "evaluate.tasks",
            )


def packaged(name: str, data: Corpus) -> dict[str, Any]:
    """Returns the definition of a task that comes with squarehead, reading the files of `data`."""
    check_packaged(name, data.format)
    path = tasks.FOLDER / f"{name}.yaml"
    definition: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    files = definition["dataset_kwargs"]["data_files"]
    definition["dataset_kwargs"]["data_files"] = {split: str(data.split(split)) for split in files}
    return definition


def load(task: Task, data: Corpus) -> Any:
    """Returns the task, or the tasks of a group, with their documents, as lm-eval's evaluator takes them. Raises
    UserError."""
    from lm_eval.tasks import TaskManager

    if task.include == "packaged":
        return TaskManager(include_defaults=False).load([packaged(task.name, data)])
    if task.include:
        folder = Path(task.include)
        if not folder.is_dir():
            raise UserError(f"no folder {task.include} with the task {task.name}", "evaluate.tasks")
        manager = TaskManager(include_path=str(folder), include_defaults=False)
        where = task.include
    else:
        check_stock(task.name)
        manager = TaskManager()
        where = "lm-eval's stock"
    if task.name not in manager.all_tasks:
        raise UserError(f"no task {task.name!r} in {where} ({len(manager.all_tasks)} tasks)", "evaluate.tasks")
    try:
        return manager.load([task.name])
    except Exception as error:
        # whatever datasets, huggingface_hub and lm-eval raise of an unreachable hub, an unknown data set, a loading
        # script, a file that is cut off, or a definition with a mistake
        reason = (str(error).strip() or type(error).__name__).split("\n")[0]
        raise UserError(f"the data of the task {task.name} cannot be loaded: {reason}", "evaluate.tasks") from error


def check(task: Task, data: Corpus) -> None:
    """Raises UserError for a task whose data cannot be had, or that has fewer examples than shots."""
    for lm_task in load(task, data)["tasks"].values():
        config = lm_task.config
        shots = (config.num_fewshot or 0) if task.shots is None else task.shots
        if not shots:
            continue
        examples = list(lm_task.fewshot_docs() or [])
        # a question is none of its own examples
        have = len(examples) - (config.fewshot_split == config.test_split)
        if shots > have:
            raise UserError(
                f"{config.task} has {have} examples to show before a question, not {shots}", "evaluate.tasks"
            )


def _model(model: Any, tokenizer: Any, task: Task, log: Log) -> Any:
    from lm_eval.models.huggingface import HFLM

    class Reporting(HFLM):  # type: ignore[misc]
        """Shows its progress on the stage's log instead of a bar of its own."""

        def generate_until(self, requests: Any, disable_tqdm: bool = False) -> Any:
            return self._shown("generate", requests, super().generate_until)

        def loglikelihood(self, requests: Any, disable_tqdm: bool = False) -> Any:
            return self._shown("score", requests, super().loglikelihood)

        def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> Any:
            return self._shown("score", requests, super().loglikelihood_rolling)

        def _shown(self, what: str, requests: Any, answer: Any) -> Any:
            with log.bar(f"{task.name}: {what}", total=len(requests), unit="request") as bar:
                self.set_cache_hook(_Advance(bar))
                return answer(requests, disable_tqdm=True)

    return Reporting(pretrained=model, tokenizer=tokenizer, batch_size=task.batch_size, device=str(model.device))


class _Advance:
    """Moves the bar. lm-eval calls it with each finished answer, for caching."""

    def __init__(self, bar: Bar) -> None:
        self._bar = bar

    def add_partial(self, kind: str, request: Any, answer: Any) -> None:
        self._bar.advance()


def higher_is_better(measured: Mapping[str, Any]) -> bool:
    """Returns the direction of a metric from `run`; lm-eval's default is True."""
    return measured["protocol"].get("higher_is_better") is not False
