"""Tables of quality: every model, means over seeds, and published figures beside ours."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from pipeline.references import Reference
from pipeline.reporting.cells import (
    Cell,
    Column,
    Table,
    megabytes,
    name_of,
    number,
    option_columns,
    options,
    percent,
    table,
    with_error,
)
from pipeline.reporting.models import ModelRow, Quality
from pipeline.reporting.study import Study
from pipeline.reporting.verdicts import SAME, SIGMAS


def models(study: Study) -> Table:
    """Dense once, then every model of every job."""
    metrics = sorted(study.metrics, key=lambda name: name != study.metric)
    columns = [*option_columns(study.columns), Column("model", "model", number=False, weight=10)]
    for metric in metrics:
        arrow, main = "↑" if study.higher_is_better(metric) else "↓", metric == study.metric
        columns.append(Column(metric, f"{name_of(metric)} {arrow}", weight=10 if main else 3))
        columns.append(Column(f"{metric}_recovery", "recovery", weight=8 if main else 2))
    columns += [
        Column("zeros", "zeros", weight=7),
        Column("model_zeros", "of all weights", weight=4),
        Column("speed", "decode ×", weight=6),
        Column("bytes", "on disk, MB", weight=3),
        Column("weight_bytes", "read a token, MB", weight=2),
        Column("seconds", "making, s", weight=5),
    ]
    notes = [
        "± is the standard error. Recovery: quality over the dense model's. Zeros: as achieved, among the prunable "
        "weights. Making: seconds of all stages that a model came by, shared ones included."
    ]
    if any(row.speed for row in study.models):
        notes.append(
            "decode ×: over torch fp32 of the dense model in the same rounds, by the fastest backend that computes "
            "what was evaluated."
        )
    if any(cell.best for row in study.models for cell in _row(study, row, metrics).values()):
        notes.append("Bold: the best of its kind at its sparsity, by value alone.")
    return table("models", "Models", columns, [_row(study, row, metrics) for row in study.models], *notes)


def _row(study: Study, row: ModelRow, metrics: Iterable[str]) -> dict[str, Cell]:
    cells = options(row.dials) | {"model": Cell(row.label)}
    for metric in metrics:
        if found := row.qualities.get(metric):
            cells |= dict(_quality(study, row, metric, found))
    made = (row.checkpoint,)
    if row.sparsity is not None and not row.is_dense:
        cells["zeros"] = Cell(percent(100 * row.sparsity), row.sparsity, None, made)
    if row.model_sparsity is not None and not row.is_dense:
        cells["model_zeros"] = Cell(percent(100 * row.model_sparsity), row.model_sparsity, None, made)
    if row.speed:
        at = row.speed
        cells["speed"] = Cell(f"{at.ratio:.2f} {at.backend}", at.ratio, None, at.fingerprints)
        if at.weight_bytes:
            cells["weight_bytes"] = Cell(megabytes(at.weight_bytes), at.weight_bytes, None, at.fingerprints)
    if row.checkpoint_bytes:
        cells["bytes"] = Cell(megabytes(row.checkpoint_bytes), row.checkpoint_bytes, None, made)
    if row.seconds:
        cells["seconds"] = Cell(f"{row.seconds:,.0f}", row.seconds, None, made)
    return cells


def _quality(study: Study, row: ModelRow, metric: str, found: Quality) -> Iterator[tuple[str, Cell]]:
    at = (row.evaluation,)
    text = with_error(metric, found.value, found.stderr)
    yield metric, Cell(text, found.value, found.stderr, at, best=_is_best(study, row, metric))
    if found.recovery is not None:
        yield f"{metric}_recovery", Cell(percent(found.recovery), found.recovery, None, at)


def _is_best(study: Study, row: ModelRow, metric: str) -> bool:
    """Whether no other of its kind at its sparsity is better. One seed of several is no winner: their mean may be."""
    if row.kind not in ("evaluate", "evaluate_q") or row.sparsity is None:
        return False
    if any(row.evaluation in over.evaluations for over in study.seeds):
        return False
    rivals = [
        other.qualities[metric].value
        for other in study.models
        if other.kind == row.kind and other.sparsity is not None and metric in other.qualities
        if abs(other.sparsity - row.sparsity) < SAME
    ]
    best = max(rivals) if row.qualities[metric].higher_is_better else min(rivals)
    return len(rivals) > 1 and row.qualities[metric].value == best


def seeds(study: Study) -> Table:
    rows = []
    for row in study.seeds:
        cells = options(row.dials) | {"model": Cell(row.label), "seeds": Cell(", ".join(row.seeds))}
        if row.sparsity:
            cells["zeros"] = Cell(percent(100 * row.sparsity), row.sparsity, None, row.evaluations)
        for metric, over in row.qualities.items():
            cells[metric] = Cell(with_error(metric, over.mean, over.std), over.mean, over.std, row.evaluations)
            if (recovery := row.recoveries.get(metric)) is not None:
                cells[f"{metric}_recovery"] = Cell(percent(recovery), recovery, None, row.evaluations)
        rows.append(cells)
    columns = option_columns(dict.fromkeys(key for row in study.seeds for key in row.dials))
    columns += [
        Column("model", "model", number=False, weight=10),
        Column("zeros", "zeros", weight=7),
        Column("seeds", "seeds", number=False, weight=4),
    ]
    for metric in sorted(study.metrics, key=lambda name: name != study.metric):
        main = metric == study.metric
        columns.append(Column(metric, name_of(metric), weight=10 if main else 3))
        columns.append(Column(f"{metric}_recovery", "recovery", weight=8 if main else 2))
    note = "Means ± sample standard deviations over seeds; not the standard error of one evaluation."
    return table("seeds", "Over seeds", columns, rows, note)


def published(study: Study) -> Table:
    """Every model of ours whose job names a table, and every figure of that, side by side where both are there."""
    sources = list(dict.fromkeys(reference.source for reference in study.references))
    beside = {at.row.evaluation: at for at in study.comparisons}
    rows = []
    for row in study.models if study.references else ():
        at = beside.get(row.evaluation)
        if at is None and study.metric in row.qualities and row.kind != "rung":
            rows.append(_ours(row, study.metric) | {"verdict": Cell("no reference")})
        elif at:
            there = _theirs(at.reference, sources.index(at.reference.source))
            rows.append(_ours(row, at.metric) | there | {"verdict": Cell(at.verdict)})
    met = [at.reference for at in study.comparisons]
    for reference in study.references:
        if reference not in met and reference.metric == study.metric:
            kind = reference.loss or reference.method or "dense"
            own = {"model": Cell(kind + ", int8" * reference.int8), "zeros": Cell(percent(100 * reference.sparsity))}
            there = _theirs(reference, sources.index(reference.source))
            rows.append(own | there | {"verdict": Cell("not measured here")})
    columns = [
        *option_columns(study.columns),
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
        "Verdicts are about values, and only of the same model and data, by their names. Within error: they differ by "
        f"less than {SIGMAS:g} standard errors of ours; published errors are not known. Of other models and data only "
        "recoveries compare."
    )
    return table("published", "Beside published figures", columns, rows, *notes)


def _ours(row: ModelRow, metric: str) -> dict[str, Cell]:
    found, mine = row.qualities[metric], (row.evaluation,)
    cells = options(row.dials) | {"model": Cell(row.label)}
    cells["ours"] = Cell(with_error(metric, found.value, found.stderr), found.value, found.stderr, mine)
    if row.sparsity and not row.is_dense:
        cells["zeros"] = Cell(percent(100 * row.sparsity), row.sparsity, None, (row.checkpoint,))
    if found.recovery is not None:
        cells["recovery"] = Cell(percent(found.recovery), found.recovery, None, mine)
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
