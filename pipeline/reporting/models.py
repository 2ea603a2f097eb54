"""One row for each evaluated model: dense once, one-shot, rungs, and what the jobs are about."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from pipeline.headline import baseline_label, first_metric, is_quality
from pipeline.reporting.folders import JobRecord, Node
from pipeline.reporting.plots import EXACT, INT8
from pipeline.reporting.results import Result, Results

ORDER = ("dense_eval", "dense_eval_q", "one_shot_eval", "rung", "evaluate", "evaluate_q")
ROLES = {
    "dense": ("dense", False),
    "sparse": ("sparse", False),
    "quantized_dense": ("dense", True),
    "quantized": ("sparse", True),
}
"""Input of a benchmark -> which of its rows ran that checkpoint: (model, int8)."""
MADE_BY = {"prune": "pruned", "finetune": "fine-tuned"}
"""Stage of a sparse checkpoint -> how its model is called."""
UNASKED = {
    "dense_eval": ("sparsity", "prune", "schedule", "distill", "finetune"),
    "dense_eval_q": ("sparsity", "prune", "schedule", "distill", "finetune"),
    "one_shot_eval": ("schedule", "distill", "finetune"),
}
"""Kind -> options that do not make a model of that kind, whichever jobs have it."""
SOURCE_STAGES = ("model", "data")


@dataclass(frozen=True)
class Quality:
    value: float
    stderr: float | None
    recovery: float | None
    """Percent of the dense model's."""
    higher_is_better: bool
    protocol: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Speed:
    """Of decoding, over torch fp32 of the dense model, by the fastest backend that computes what was evaluated."""

    backend: str
    ratio: float
    slowest: float
    fastest: float
    weight_bytes: int | None
    """Read for each decoded token."""
    fingerprints: tuple[str, ...]
    """Of the benchmarks; with more than one, medians."""


@dataclass(frozen=True)
class ModelRow:
    kind: str
    """Of `ORDER`."""
    label: str
    evaluation: str
    """Fingerprint."""
    checkpoint: str
    """Fingerprint of what was evaluated."""
    jobs: tuple[int, ...]
    """Places in the report's list of jobs."""
    dials: dict[str, str]
    """The options that differ, as far as those jobs agree in them."""
    loss: str
    qualities: dict[str, Quality]
    sparsity: float | None
    model_sparsity: float | None
    checkpoint_bytes: int | None
    """On disk."""
    seconds: float
    """Of all stages it was made by, without fetching sources."""
    speed: Speed | None

    @property
    def is_baseline(self) -> bool:
        """The model that pruning starts from, which may have come sparse."""
        return self.kind.startswith("dense")

    @property
    def is_dense(self) -> bool:
        return self.is_baseline and not self.sparsity

    @property
    def int8(self) -> bool:
        return self.kind.endswith("_q")


def rows(
    jobs: Sequence[JobRecord], settings: Sequence[dict[str, str]], losses: Sequence[str], results: Results
) -> list[ModelRow]:
    """Of all evaluations there are."""
    uses: dict[str, list[tuple[int, Node]]] = {}
    for at, job in enumerate(jobs):
        for node in job.nodes.values():
            if node.stage == "evaluate":
                uses.setdefault(node.fingerprint, []).append((at, node))
    found = []
    for fingerprint, users in uses.items():
        result = results.of(users[0][1]) or next((r for _, node in users if (r := results.of(node))), None)
        if result:
            found.append(_row(fingerprint, users, result, settings, losses, results))
    return sorted(found, key=_place)


def _place(row: ModelRow) -> tuple[bool, float, int, int]:
    """Dense models first, then by sparsity, job by job."""
    if row.is_baseline:
        return False, 0.0, ORDER.index(row.kind), row.jobs[0]
    return True, round(row.sparsity or 0, 3), row.jobs[0], ORDER.index(row.kind)


def _row(
    fingerprint: str, users: Sequence[tuple[int, Node]], result: Result, settings: Sequence[dict[str, str]],
    losses: Sequence[str], results: Results,
) -> ModelRow:  # fmt: skip
    # of all that asked for it, whose own it is: a rung of one ladder may be the last of another
    name = max((node.name for _, node in users), key=lambda name: ORDER.index(name) if name in ORDER else -1)
    users = [(at, node) for at, node in users if node.name == name]
    places = tuple(at for at, _ in users)
    checkpoint = results.by_fingerprint(result.inputs.get("model", ""))
    first = settings[places[0]]
    agreed = {key: value for key, value in first.items() if all(settings[at].get(key) == value for at in places)}
    shared_loss = {losses[at] for at in places}
    kind = name if name in ORDER else "rung"
    achieved = zeros(checkpoint, results)
    made_of = results.ancestors(checkpoint.fingerprint) if checkpoint else []
    return ModelRow(
        kind=kind,
        label=_label(kind, name, checkpoint, achieved[0], results),
        evaluation=fingerprint,
        checkpoint=checkpoint.fingerprint if checkpoint else "",
        jobs=places,
        dials={key: value for key, value in agreed.items() if key.partition(".")[0] not in UNASKED.get(kind, ())},
        loss=shared_loss.pop() if len(shared_loss) == 1 and kind not in UNASKED else "",
        qualities=qualities(result),
        sparsity=achieved[0],
        model_sparsity=achieved[1],
        checkpoint_bytes=checkpoint.weight_files_bytes if checkpoint else None,
        seconds=sum(made.seconds for made in made_of if made.stage not in SOURCE_STAGES),
        speed=_speed(checkpoint.fingerprint, results) if checkpoint else None,
    )


def _label(kind: str, name: str, checkpoint: Result | None, sparsity: float | None, results: Results) -> str:
    if kind.startswith("dense"):
        return baseline_label(sparsity or 0.0, kind.endswith("_q"))
    if kind == "one_shot_eval":
        return "one-shot"
    under = checkpoint
    if kind == "evaluate_q" and checkpoint:
        under = results.by_fingerprint(checkpoint.inputs.get("model", ""))
    made = MADE_BY.get(under.stage, "sparse") if under else "sparse"
    if kind == "rung":
        return f"rung {name.removeprefix('evaluate_').replace('of', ':')}, {made}"
    return f"{made}, int8" if kind == "evaluate_q" else made


def qualities(result: Result) -> dict[str, Quality]:
    """By metric. Of a result that the store has lost, from the summary, which knows no protocol."""
    stored = result.read("metrics.json") or {}
    found = {}
    for name in filter(is_quality, result.metrics):
        metric = stored.get(name, {})
        protocol = metric.get("protocol", {})
        found[name] = Quality(
            value=result.metrics[name] if name not in stored else metric["value"],
            stderr=metric.get("stderr", result.metrics.get(f"{name}_stderr")),
            recovery=result.metrics.get(f"{name}_recovery"),
            higher_is_better=protocol.get("higher_is_better") is not False if protocol else _higher(name),
            protocol=protocol,
        )
    return found


def _higher(metric: str) -> bool:
    return not any(part in metric for part in ("perplexity", "wer", "cer", "loss"))


def zeros(checkpoint: Result | None, results: Results) -> tuple[float | None, float | None]:
    """(of the prunable weights, of the whole model); an int8 checkpoint has its model's."""
    if checkpoint is None:
        return None, None
    if checkpoint.stage in ("model", "scratch"):
        return checkpoint.metrics.get("sparsity", 0.0), checkpoint.metrics.get("model_sparsity", 0.0)
    whole = checkpoint.metrics.get("model_sparsity")
    if whole is None and (under := results.by_fingerprint(checkpoint.inputs.get("model", ""))):
        whole = zeros(under, results)[1]
    return checkpoint.metrics.get("sparsity"), whole


def benchmarks(results: Results) -> Iterator[tuple[Result, Mapping[str, Any]]]:
    """Every benchmark that was read, and its benchmark.json."""
    for result in results.all():
        if result.stage == "benchmark" and (found := result.read("benchmark.json")):
            yield result, found


def _speed(checkpoint: str, results: Results) -> Speed | None:
    measured: dict[str, list[tuple[str, Mapping[str, Any]]]] = {}
    for result, found in benchmarks(results):
        wanted = [ROLES[role] for role, source in result.inputs.items() if role in ROLES and source == checkpoint]
        for row in found["rows"]:
            is_int8 = row["backend"] in INT8
            told = row["status"] == "ok" and row["backend"] in EXACT and row["decode_speedup"]["torch_fp32_dense"]
            if told and (row["model"], is_int8) in wanted:
                measured.setdefault(row["backend"], []).append((result.fingerprint, row))
    speeds = [_over_rounds(backend, found) for backend, found in measured.items()]
    return max(speeds, key=lambda speed: speed.ratio, default=None)


def _over_rounds(backend: str, measured: Sequence[tuple[str, Mapping[str, Any]]]) -> Speed:
    ratios, ends = [], []
    for _, row in measured:
        ratio = row["decode_speedup"]["torch_fp32_dense"]
        ratios.append(ratio)
        over = ratio / row["decode_tokens_per_second"]
        ends += [over * row[f"decode_tokens_per_second_{end}"] for end in ("min", "max")]
    return Speed(
        backend=backend,
        ratio=median(ratios),
        slowest=min(ends),
        fastest=max(ends),
        weight_bytes=measured[0][1].get("weight_bytes"),
        fingerprints=tuple(dict.fromkeys(fingerprint for fingerprint, _ in measured)),
    )


def main_metric(rows: Sequence[ModelRow], published: Sequence[str]) -> str:
    """What models are compared by in the first place: what a published table tells, or else `first_metric`."""
    names = list(dict.fromkeys(name for row in rows for name in row.qualities))
    return next((name for name in published if name in names), first_metric(names))
