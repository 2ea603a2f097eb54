"""Checks options of `evaluate` without a model in memory: by themselves, and by the records of the model and the data.
Torch-free."""

from __future__ import annotations

import functools
import importlib.util
import re
from pathlib import Path
from typing import TYPE_CHECKING

from engine import sources
from stages.contracts import DataSet, Structure, UserError
from stages.evaluate import tasks
from stages.evaluate.tokenizers import check_installed
from stages.model.families import FAMILIES
from stages.record_checks import check_length, check_split, check_tokens

if TYPE_CHECKING:
    from stages.evaluate.spec import EvaluateOptions


def check_early(options: EvaluateOptions, model: Structure, data: DataSet | None) -> None:
    """Raises UserError for options that cannot work with a model of this structure and these data."""
    if asked := options.perplexity:
        check_length(model, asked.length, "evaluate.perplexity.length")
        check_split(data, asked.split, "evaluate.perplexity.split")
        tokens = max(asked.windows, 1) * asked.length
        check_tokens(data, asked.split, tokens, "evaluate.perplexity.windows")
    if options.runtime == "engine" and sources.library() is None:
        raise UserError("the engine has no kernels; installing with a C++ compiler builds them", "evaluate.runtime")
    if options.generation:
        check_split(data, options.generation.split, "evaluate.generation.split")


def check_options(options: EvaluateOptions, family: str, data_format: str) -> None:
    """Raises UserError for options that models of this family do not support, and for tasks that do not exist or do not
    fit data of this format. Needs no record."""
    if not FAMILIES.get(family).is_encoder_decoder:
        if options.generation:
            raise UserError(
                f"generated texts are scored for encoder-decoders only; {family} has perplexity and tasks",
                "evaluate.generation",
            )
    else:
        for name in ("perplexity", "tasks", "metrics"):
            if getattr(options, name):
                raise UserError(
                    f"{family} is an encoder-decoder, which has no {name} here; set evaluate.generation",
                    f"evaluate.{name}",
                )
    if options.generation:
        check_installed(options.generation.tokenize)
    for task in options.tasks:
        if task.include == "packaged":
            check_packaged(task.name, data_format)
        elif not task.include:
            check_stock(task.name)


def check_packaged(task: str, data_format: str) -> None:
    """Raises UserError for a task that does not come with squarehead, or that does not fit data of this format."""
    if task not in (have := sorted(path.stem for path in tasks.FOLDER.glob("*.yaml"))):
        raise UserError(f"no packaged task {task!r}; there is: {', '.join(have)}", "evaluate.tasks")
    if data_format != "qa":
        raise UserError(f"{task} asks questions, it needs data of format qa, not {data_format}", "evaluate.tasks")


@functools.cache
def check_stock(task: str) -> None:
    """Raises UserError for a name that is in none of lm-eval's definitions; lm-eval itself takes a quarter of a minute
    to read them all."""
    found = importlib.util.find_spec("lm_eval")
    assert found is not None
    assert found.origin is not None
    wanted = re.compile(rf"^[\s\-]*(?:(?:task|group|tag)\s*:)?\s*[\"']?{re.escape(task)}[\"']?\s*$", re.MULTILINE)
    files = sorted((Path(found.origin).parent / "tasks").rglob("*.yaml"), key=lambda file: task not in file.name)
    if not any(wanted.search(file.read_text(encoding="utf-8")) for file in files):
        raise UserError(f"no task {task!r} among lm-eval's stock; `lm-eval ls tasks` lists them", "evaluate.tasks")
