"""The tidy table of a report: a row for each model, metric and stored result that measured it.

A row of an evaluation has a quality of a model. A row of a benchmark has a figure of one backend that ran a checkpoint.
Everything else that a report says of models is a function of this table.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pipeline.record.folders import JobRecord, Node
from pipeline.record.headline import baseline_label
from pipeline.record.metrics import of_result
from pipeline.record.result import Result
from pipeline.reporting.choices import common_options
from pipeline.reporting.results import Results
from pipeline.reporting.speeds import SpeedRow, ran
from stages.contracts import Metrics
from stages.index import described

if TYPE_CHECKING:
    from pandas import DataFrame

KINDS = ("dense_eval", "dense_eval_q", "one_shot_eval", "rung", "evaluate", "evaluate_q")
"""Roles of a model in its job, in the order of the table."""
FINETUNED = ("evaluate", "evaluate_q")
BASELINES = ("dense_eval", "dense_eval_q")
"""Evaluations of the model that pruning starts from, which may have come sparse."""
MODEL = ("kind", "label", "evaluation", "checkpoint", "jobs", "options", "loss", "sparsity", "model_sparsity",
         "checkpoint_bytes", "seconds")  # fmt: skip
"""Columns of a model. evaluation, checkpoint: fingerprints. jobs: places in the list of jobs. options: those that
differ between jobs, as far as the model's jobs agree. sparsity: of the prunable weights; model_sparsity: of all.
seconds: of all stages that made it, without fetching sources."""
FIGURE = (
    "fingerprint",
    "metric",
    "value",
    "stderr",
    "recovery",
    "higher_is_better",
    "protocol",
    "backend",
    "low",
    "high",
)
"""Columns of a figure. fingerprint: of the result that has it. recovery: percent of the dense model's quality. backend,
low, high (of the slowest and the fastest round): of benchmarks only."""
UNUSED = {
    "dense_eval": ("sparsity", "prune", "schedule", "distill", "finetune"),
    "dense_eval_q": ("sparsity", "prune", "schedule", "distill", "finetune"),
    "one_shot_eval": ("schedule", "distill", "finetune"),
}
"""Sections of options that models of a kind do not depend on."""
BEFORE_TASKS = {"base_eval": "base", "foundation_eval": "foundation"}
"""Evaluations on a corpus, and the labels of their models."""
SPEEDS = ("decode_tokens_per_second", "prefill_ms", "weight_bytes")
"""Figures of a benchmark's row, beside the speed-up."""


def tidy(
    jobs: Sequence[JobRecord], settings: Sequence[dict[str, str]], losses: Sequence[str], results: Results,
    speeds: Sequence[SpeedRow],
) -> DataFrame:  # fmt: skip
    """Builds the tidy table. `settings` are the options in which jobs differ, `losses` the losses, one entry for each
    job."""
    from pandas import DataFrame

    uses: dict[str, list[tuple[int, Node]]] = {}
    for at, job in enumerate(jobs):
        for node in job.nodes.values():
            if described(node.stage).makes is Metrics:
                uses.setdefault(node.fingerprint, []).append((at, node))
    found: list[tuple[dict[str, Any], Result]] = []
    for users in uses.values():
        if result := next(filter(None, (results.of(node) for _, node in users)), None):
            found.append((_model(users, result, settings, losses, results), result))
    rows = [model | figure for model, result in sorted(found, key=_place) for figure in qualities(result)]
    rows += [figure for row in speeds for figure in _speeds(row, results)]
    return DataFrame(rows, columns=[*MODEL, *FIGURE], dtype=object).where(lambda it: it.notna(), None)


def _place(found: tuple[Mapping[str, Any], Result]) -> tuple[bool, float, int, int]:
    """Returns the sort key of a model: dense models first, then by sparsity, job by job."""
    model, kind = found[0], KINDS.index(found[0]["kind"])
    if model["kind"] in BASELINES:
        return False, 0.0, kind, model["jobs"][0]
    return True, round(model["sparsity"] or 0, 3), model["jobs"][0], kind


def _model(
    users: Sequence[tuple[int, Node]], result: Result, settings: Sequence[dict[str, str]], losses: Sequence[str],
    results: Results,
) -> dict[str, Any]:  # fmt: skip
    # a rung of one ladder may be the last model of another: it is named after the most specific use
    name = max((node.name for _, node in users), key=lambda name: KINDS.index(name) if name in KINDS else -1)
    jobs = tuple(at for at, node in users if node.name == name)
    kind = name if name in KINDS else "rung"
    checkpoint = results.by_fingerprint(result.inputs.get("model", ""))
    made_of = results.ancestors(checkpoint.fingerprint) if checkpoint else []
    agreed = common_options([settings[at] for at in jobs])
    shared_loss = {losses[at] for at in jobs}
    sparsity, model_sparsity = results.zeros(checkpoint)
    return {
        "kind": kind,
        "label": _label(kind, name, checkpoint, sparsity, results),
        "evaluation": result.fingerprint,
        "checkpoint": checkpoint.fingerprint if checkpoint else "",
        "jobs": jobs,
        "options": {key: value for key, value in agreed.items() if key.partition(".")[0] not in UNUSED.get(kind, ())},
        "loss": shared_loss.pop() if len(shared_loss) == 1 and kind not in UNUSED else "",
        "sparsity": sparsity,
        "model_sparsity": model_sparsity,
        "checkpoint_bytes": checkpoint.weight_files_bytes if checkpoint else None,
        "seconds": sum(made.seconds for made in made_of if not described(made.stage).in_cache),
    }


def _label(kind: str, name: str, checkpoint: Result | None, sparsity: float | None, results: Results) -> str:
    if kind in BASELINES:
        return baseline_label(sparsity or 0.0, kind.endswith("_q"))
    if kind == "one_shot_eval":
        return "one-shot"
    under = checkpoint
    if kind == "evaluate_q" and checkpoint:
        under = results.by_fingerprint(checkpoint.inputs.get("model", ""))
    if name in BEFORE_TASKS:
        return BEFORE_TASKS[name]
    made = (described(under.stage).model_label if under else "") or "sparse"
    if kind == "rung":
        return f"rung {name.removeprefix('evaluate_').replace('of', ':')}, {made}"
    return f"{made}, int8" if kind == "evaluate_q" else made


def qualities(result: Result) -> Iterator[dict[str, Any]]:
    """Yields a row for each metric, or one without a metric if an evaluation has none. For a lost result the summary
    provides the values but no protocol."""
    found = [metric for metric in of_result(result.stage, result.metrics, result.folder).values() if metric.is_quality]
    for metric in found:
        keys = ("value", "stderr", "recovery", "higher_is_better", "protocol")
        own = {key: getattr(metric, key) for key in keys}
        yield {"fingerprint": result.fingerprint, "metric": metric.name} | own
    if not found:
        yield {"fingerprint": result.fingerprint, "metric": ""}


def _speeds(row: SpeedRow, results: Results) -> Iterator[dict[str, Any]]:
    benchmark = results.by_fingerprint(row.benchmark)
    for side, measured in (("dense", row.dense), ("sparse", row.sparse)):
        if not measured or not benchmark:
            continue
        about = {
            "checkpoint": benchmark.inputs.get(ran(side, row.backend), ""),
            "evaluation": "",
            "kind": side,
            "jobs": row.jobs,
            "options": row.options,
            "fingerprint": row.benchmark,
            "backend": row.backend,
        }
        rate = measured["decode_tokens_per_second"]
        ends = {end: measured[f"decode_tokens_per_second_{name}"] for end, name in (("low", "min"), ("high", "max"))}
        if ratio := measured["decode_speedup"]["torch_fp32_dense"]:
            over = {end: ratio / rate * value for end, value in ends.items()}
            yield about | {"metric": "decode_speedup", "value": ratio, "higher_is_better": True} | over
        for metric in SPEEDS:
            if measured.get(metric) is not None:
                known = ends if metric == "decode_tokens_per_second" else {}
                yield about | {"metric": metric, "value": measured[metric]} | known


def models(table: DataFrame) -> DataFrame:
    """Returns one row for each evaluated model, in the order of the table."""
    found: DataFrame = table[table["evaluation"] != ""].drop_duplicates("evaluation")
    return found


def metrics(table: DataFrame) -> list[str]:
    """Returns the names of the metrics of quality."""
    return [name for name in table.loc[table["evaluation"] != "", "metric"].unique() if name]
