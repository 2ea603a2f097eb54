"""Compares our figures with published ones and gives verdicts."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pipeline.labels import source
from pipeline.record.folders import JobRecord
from pipeline.references import Reference
from pipeline.reporting.choices import loss
from pipeline.reporting.pairs import SIGMAS
from pipeline.reporting.table import BASELINES

if TYPE_CHECKING:
    from pandas import DataFrame

Row = Mapping[str, Any]
"""A row of the tidy table."""

Verdict = Literal["within error", "better", "worse", "no error known", "no reference (other model)",
                  "no reference (other data)"]  # fmt: skip
WHOLE = {"evaluate.perplexity.windows": 0, "evaluate.perplexity.documents": 0, "evaluate.generation.limit": 0,
         "data.size": 0}  # fmt: skip
"""Options of a whole split, on which published figures are measured."""
SAME = 0.005
"""Sparsities that differ by less are the same level."""


@dataclass(frozen=True)
class Comparison:
    """A quality of one of our models, and the published one at the same place of its table."""

    row: Row
    reference: Reference
    same_model: bool
    same_data: bool
    verdict: Verdict
    why: str


def compare(jobs: Sequence[JobRecord], table: DataFrame, references: Sequence[Reference]) -> list[Comparison]:
    """Compares each of our models with the published ones of the same level, loss, pattern and precision, in the table
    that its job names."""
    return [
        _compared(row, jobs[row["jobs"][0]], reference)
        for row in table[table["evaluation"] != ""].to_dict("records")
        for reference in references
        if row["metric"] == reference.metric and _stands_beside(row, jobs[row["jobs"][0]], reference)
    ]


def _stands_beside(row: Row, job: JobRecord, reference: Reference) -> bool:
    if reference.table != job.config.get("reference") or reference.int8 != row["kind"].endswith("_q"):
        return False
    if row["kind"] in BASELINES:
        return not row["sparsity"] and reference.sparsity == 0
    prune = job.config.get("prune", {})
    return (
        row["sparsity"] is not None
        and abs(row["sparsity"] - reference.sparsity) < SAME
        and reference.pattern == prune.get("pattern", "unstructured")
        and reference.method in (None, prune.get("method"))
        and (reference.loss or "") == (loss(job.config) if row["kind"] != "one_shot_eval" else "")
    )


def _compared(row: Row, job: JobRecord, reference: Reference) -> Comparison:
    same_model, same_data = same(job, reference)
    verdict, why = _verdict(row, reference, same_model, same_data, differences(job.config, reference))
    return Comparison(row, reference, same_model, same_data, verdict, why)


def same(job: JobRecord, reference: Reference) -> tuple[bool, bool]:
    """Returns whether a published figure is of the job's model, and of its data as measured there: by the last parts of
    their paths, the whole split, and the rest of the reference's protocol."""
    data = job.config.get("data", {})
    model = _last(source(job.config.get("model", {})))
    named = f"{_last(source(data))} {data.get('subset', '')}"
    same_data = _is_one_of(named, reference.data) and not differences(job.config, reference)
    return _is_one_of(model, (reference.model, *reference.models)), same_data


def differences(config: Mapping[str, Any], reference: Reference) -> list[str]:
    """Returns `option=value, published VALUE` for each option in which the job's measurement differs from the published
    one."""
    found = []
    for option, value in (WHOLE | dict(reference.usual) | dict(reference.protocol)).items():
        ours = _option(config, option)
        allowed = value if isinstance(value, list | tuple) else (value,)
        if (ours is not None and ours not in allowed) or (ours is None and option in reference.protocol):
            found.append(
                f"{option}={'not known' if ours is None else _readable(ours)}, published {_readable(allowed[0])}"
            )
    split = _measured_split(config, reference)
    theirs = (_option(config, "data.splits") or {}).get(split, split)
    if theirs != split:
        found.append(f"data.splits.{split}={theirs}, published {split}")
    for task in (config.get("evaluate") or {}).get("tasks") or []:
        if task.get("limit"):
            found.append(f"the first {task['limit']} documents of {task['name']}, published all")
        if reference.shots is not None and task.get("shots") not in (None, reference.shots):
            found.append(f"{task['shots']} shots of {task['name']}, published {reference.shots}")
    return found


def _readable(value: Any) -> str:
    """Returns a value as it can be read: a text of spaces and line ends in quotes."""
    return repr(value) if isinstance(value, str) and not value.strip() else str(value)


def _measured_split(config: Mapping[str, Any], reference: Reference) -> str:
    """Returns the split of the job's data on which it measures the published metric."""
    section = "perplexity" if reference.metric == "perplexity" else "generation"
    return str(_option(config, f"evaluate.{section}.split") or "test")


def _option(config: Mapping[str, Any], option: str) -> Any:
    """Returns the value of an option; None if the job does not have it."""
    found: Any = config
    for part in option.split("."):
        if not isinstance(found, Mapping) or part not in found:
            return None
        found = found[part]
    return found


def _verdict(
    ours: Row, reference: Reference, same_model: bool, same_data: bool, differ: Sequence[str]
) -> tuple[Verdict, str]:
    if not same_model:
        return "no reference (other model)", f"{reference.model} there; recoveries stand side by side"
    if not same_data:
        why = "; ".join([f"{reference.dataset} there", *differ])
        return "no reference (other data)", f"{why}; recoveries stand side by side"
    better = (ours["value"] > reference.value) == reference.higher_is_better
    if ours["stderr"] is None:
        return "no error known", "better, perhaps" if better else "worse, perhaps"
    # the published error is not known where its table has none: then only ours counts
    if abs(ours["value"] - reference.value) <= SIGMAS * ours["stderr"]:
        return "within error", f"differs by less than {SIGMAS:g} standard errors of ours"
    return ("better" if better else "worse"), f"differs by more than {SIGMAS:g} standard errors of ours"


def _last(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2]


def _is_one_of(name: str, names: Sequence[str]) -> bool:
    """Compares names apart from spelling: google-t5/t5-small is T5-small, google/mt5-small is not."""
    return _letters(name) in map(_letters, names)


def _letters(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
