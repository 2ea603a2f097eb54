"""Tables of quality: every model, means over seeds, and published figures beside ours."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import isnan

from pipeline.references import Reference
from pipeline.reporting.analysis import Row
from pipeline.reporting.cells import (
    Cell,
    Column,
    Table,
    measured,
    megabytes,
    name_of,
    number,
    option_columns,
    options,
    percent,
    share,
    table,
)
from pipeline.reporting.pairs import SIGMAS
from pipeline.reporting.study import Study
from pipeline.reporting.table import BASELINES, FINETUNED
from pipeline.reporting.verdicts import SAME


def pivot(study: Study) -> Table:
    """Tabulates the main metric: a row for each series, a column for each position on the axis; the mean over several
    seeds."""
    axis, metric = study.naming.axis, study.metric
    found = [level for level in study.levels(metric) if not isnan(level.place)] if metric else []
    rows: dict[str, dict[str, Cell]] = {}
    for dense in study.dense(metric) if found else ():
        cell = measured(metric, dense["value"], dense["stderr"], (dense["evaluation"],))
        rows.setdefault(dense["label"], {"series": Cell(dense["label"]), "dense": cell})
    for level in found:
        rivals = [other.value for other in found if other.place == level.place and not other.one_shot]
        best = len(rivals) > 1 and (max if study.higher_is_better(metric) else min)(rivals) == level.value
        cell = measured(metric, level.value, level.error, level.evaluations, best and not level.one_shot)
        rows.setdefault(level.series, {"series": Cell(level.series)})[f"at.{level.place:g}"] = cell
    columns = [Column("series", "", number=False, weight=10), Column("dense", "before pruning")]
    for place in sorted({level.place for level in found}):
        columns.append(Column(f"at.{place:g}", f"{place:.3g} %" if axis == "sparsity" else f"{axis} {place:g}"))
    notes = ["± is the standard error" + "; of several seeds, mean ± standard deviation" * bool(study.seeds) + "."]
    if any(cell.best for row in rows.values() for cell in row.values()):
        notes.append("Bold: the best of the fine-tuned models, by value alone.")
    better = "higher" if found and study.higher_is_better(metric) else "lower"
    title = f"{name_of(metric)} by {axis} ({better} is better)" if found else ""
    return table("pivot", title, columns, list(rows.values()), *notes)


def models(study: Study) -> Table:
    """Tabulates the dense model once, then every model of every job."""
    columns = [
        *option_columns(study.model_columns),
        Column("model", "model", number=False, weight=10),
        *_metric_columns(study, {metric: " ↑" if study.higher_is_better(metric) else " ↓" for metric in study.metrics}),
        Column("zeros", "zeros", weight=7),
        Column("model_zeros", "overall sparsity", weight=4),
        Column("speed", "decode ×", weight=6),
        Column("bytes", "on disk, MB", weight=3),
        Column("weight_bytes", "read per token, MB", weight=2),
        Column("seconds", "total time, s", weight=5),
    ]
    notes = [
        "± is the standard error. Recovery: quality over the dense model's. Zeros: the achieved sparsity of the "
        "prunable weights. Total time: of all stages that made the model, shared ones included. On disk: the training "
        "checkpoint with its masks; an exported folder of the engine stores the zeros in one bit each."
    ]
    rows = [_model(study, row) for row in study.models]
    if any("speed" in row for row in rows):
        notes.append(
            "decode ×: over torch fp32 of the dense model in the same rounds (slowest to fastest round), by the "
            "fastest backend that computes what was evaluated."
        )
    if any(cell.best for row in rows for cell in row.values()):
        notes.append("Bold: the best of its kind at its sparsity, by value alone.")
    return table("models", "All models", columns, rows, *notes)


def _model(study: Study, model: Row) -> dict[str, Cell]:
    cells = options(model["options"]) | {"model": Cell(model["label"])}
    for metric, row in study.qualities[model["evaluation"]].items():
        found = row["value"], row["stderr"], row["recovery"], (row["evaluation"],)
        cells |= _quality(metric, *found, best=_is_best(study, row))
    made = (model["checkpoint"],)
    if model["kind"] not in BASELINES or model["sparsity"]:
        for key, of in (("zeros", "sparsity"), ("model_zeros", "model_sparsity")):
            if model[of] is not None:
                cells[key] = share(model[of], made)
    if speed := study.speed(model):
        ends = f"{speed.slowest:.2f}–{speed.fastest:.2f}"
        cells["speed"] = Cell(f"{speed.ratio:.2f} ({ends}) {speed.backend}", speed.ratio, None, speed.fingerprints)
        if speed.weight_bytes:
            cells["weight_bytes"] = Cell(megabytes(speed.weight_bytes), speed.weight_bytes, None, speed.fingerprints)
    if model["checkpoint_bytes"]:
        cells["bytes"] = Cell(megabytes(model["checkpoint_bytes"]), model["checkpoint_bytes"], None, made)
    if model["seconds"]:
        cells["seconds"] = Cell(f"{model['seconds']:,.0f}", model["seconds"], None, made)
    return cells


def _metric_columns(study: Study, arrows: Mapping[str, str]) -> Iterator[Column]:
    """Yields a column for each metric and its recovery; the main metric is the last to be dropped where there is no
    room."""
    for metric in study.metrics:
        main = metric == study.metric
        yield Column(metric, name_of(metric) + arrows.get(metric, ""), weight=10 if main else 3)
        yield Column(f"{metric}_recovery", "recovery", weight=8 if main else 2)


def _quality(
    metric: str, value: float, error: float | None, recovery: float | None, prints: tuple[str, ...], best: bool = False
) -> dict[str, Cell]:
    cells = {metric: measured(metric, value, error, prints, best)}
    if recovery is not None:
        cells[f"{metric}_recovery"] = Cell(percent(recovery), recovery, None, prints)
    return cells


def _is_best(study: Study, row: Row) -> bool:
    """Returns whether no other model of its kind at its sparsity is better. A single seed of several is never best:
    their mean may be."""
    if row["kind"] not in FINETUNED or row["sparsity"] is None:
        return False
    if any(row["evaluation"] in over.evaluations for over in study.seeds):
        return False
    same = study.table[(study.table["metric"] == row["metric"]) & (study.table["kind"] == row["kind"])]
    rivals = same[same["sparsity"].notna()]
    values = rivals.loc[(rivals["sparsity"] - row["sparsity"]).abs() < SAME, "value"]
    return len(values) > 1 and row["value"] == (max(values) if row["higher_is_better"] else min(values))


def seeds(study: Study) -> Table:
    rows = []
    for row in study.seeds:
        cells = options(row.options) | {"model": Cell(row.label), "seeds": Cell(", ".join(row.seeds))}
        if row.sparsity:
            cells["zeros"] = share(row.sparsity, row.evaluations)
        for metric, over in row.qualities.items():
            cells |= _quality(metric, over.mean, over.std, row.recoveries.get(metric), row.evaluations)
        rows.append(cells)
    columns = option_columns(dict.fromkeys(key for row in study.seeds for key in row.options))
    columns += [
        Column("model", "model", number=False, weight=10),
        Column("zeros", "zeros", weight=7),
        Column("seeds", "seeds", number=False, weight=4),
        *_metric_columns(study, {}),
    ]
    note = "Means ± sample standard deviations over seeds; not the standard error of one evaluation."
    return table("seeds", "Over seeds", columns, rows, note)


def published(study: Study) -> Table:
    """Tabulates every model of ours that has a published figure beside it, and figures that only the published table
    has, if some of it are of the same model."""
    sources = list(dict.fromkeys(reference.source for reference in study.references))
    rows = []
    for at in study.comparisons:
        there = _theirs(at.reference, sources.index(at.reference.source))
        rows.append(_ours(at.row) | there | {"verdict": Cell(at.verdict)})
    met = [at.reference for at in study.comparisons]
    for reference in study.references if any(at.same_model for at in study.comparisons) else ():
        if reference not in met and reference.metric == study.metric:
            kind = reference.loss or reference.method or "dense"
            level = percent(100 * reference.sparsity)
            own = {"model": Cell(kind + ", int8" * reference.int8), "zeros": Cell(level)}
            there = _theirs(reference, sources.index(reference.source))
            rows.append(own | there | {"verdict": Cell("not measured here")})
    columns = [
        *option_columns(study.model_columns),
        Column("model", "model", number=False, weight=10),
        Column("zeros", "zeros", weight=9),
        Column("ours", f"ours, {name_of(study.metric)}", weight=10),
        Column("recovery", "recovery", weight=7),
        Column("there", "published", weight=10),
        Column("recovery_there", "recovery", weight=7),
        Column("source", "source", number=False, weight=2),
        Column("verdict", "verdict", number=False, weight=10),
    ]
    about = {reference.title: reference for reference in study.references}
    notes = [f"Published: {title} ({it.model}){f': {it.note}' if it.note else ''}." for title, it in about.items()]
    notes += [f"{_letter(number)}: {source}." for number, source in enumerate(sources)]
    notes.append(
        "Verdicts compare values, and only for the same model and data, by name. Within error: they differ by "
        f"less than {SIGMAS:g} standard errors of ours; published errors are not known. Of other models and data only "
        "recoveries compare."
    )
    return table("published", "Beside published figures", columns, rows, *notes)


def _ours(row: Row) -> dict[str, Cell]:
    at = (row["evaluation"],)
    cells = options(row["options"]) | {"model": Cell(row["label"])}
    cells["ours"] = measured(row["metric"], row["value"], row["stderr"], at)
    if row["recovery"] is not None:
        cells["recovery"] = Cell(percent(row["recovery"]), row["recovery"], None, at)
    if row["sparsity"]:
        cells["zeros"] = share(row["sparsity"], (row["checkpoint"],))
    return cells


def _theirs(reference: Reference, source: int) -> dict[str, Cell]:
    cells = {
        "there": Cell(number(reference.metric, reference.value), reference.value),
        "source": Cell(_letter(source)),
    }
    if reference.recovery is not None and (reference.sparsity or reference.int8):
        cells["recovery_there"] = Cell(percent(reference.recovery), reference.recovery)
    return cells


def _letter(number: int) -> str:
    return "abcdefghijklmnopqrstuvwxyz"[number]
